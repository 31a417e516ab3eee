"""Where the randomness of a step comes from."""


def seed_of(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed from three numbers, different for different ones (splitmix64's finaliser on each)."""
    state = 0
    for number in (seed, rank, step):
        state = (state ^ number) * 0x9E3779B97F4A7C15 % (1 << 64)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        state ^= state >> 31
    return state >> 1
