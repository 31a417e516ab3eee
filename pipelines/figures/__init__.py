"""Draw pictures: grids, plots, tables, the paper's figures, the HTML report."""
