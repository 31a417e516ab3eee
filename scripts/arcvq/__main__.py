"""`python -m arcvq VERB ...` and `accelerate launch -m arcvq VERB ...`."""

from arcvq.verbs import main

if __name__ == "__main__":
    main()
