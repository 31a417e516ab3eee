"""When a training will end, by its speed since its start."""

from datetime import datetime, timedelta

from arcvq.queue.pace import Pace

START = datetime(2030, 1, 1)


def expected(seen, steps=100):
    pace = Pace()
    for second, step in seen:
        pace.see(step, START + timedelta(seconds=second))
    end = pace.expected_end(steps)
    return None if end is None else (end - START).total_seconds()


def test_the_time_of_the_start_does_not_count():
    # Step 40 of before is seen for 500 s; then a step takes 2 s.
    assert expected([(0, 40), (499, 40), (500, 50), (520, 60), (521, 60)]) == 520 + 40 * 2


def test_steps_that_are_repeated_begin_the_count_anew():
    assert expected([(0, 40), (10, 60), (20, 80), (30, 50), (40, 55), (45, 60)]) == 45 + 40 * 1


def test_nothing_is_said_before_two_new_steps_or_without_a_number_of_steps():
    assert expected([]) is None and expected([(0, 40), (9, 40)]) is None and expected([(0, 40), (9, 50)]) is None
    assert expected([(0, 0), (1, 1), (2, 2)], None) is None
