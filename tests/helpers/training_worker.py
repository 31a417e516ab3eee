"""One process of several that train a tokenizer together; run by the tests with the arguments of runs, parted by --.

With FLOAT64 in the environment all is computed in float64, what the code asks to be float32 included.
"""

import os
import sys

import torch

from arcvq.training import tokenizer as train_tokenizer

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    train_tokenizer.PREVIEW_IMAGES = 8
    if "FLOAT64" in os.environ:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    runs, rest = [[]], sys.argv[1:]
    for word in rest:
        runs.append([]) if word == "--" else runs[-1].append(word)
    for arguments in runs:
        train_tokenizer.main(arguments)
