"""A queue that does not mind: commands of days at low priority, each resumed until it is done."""
