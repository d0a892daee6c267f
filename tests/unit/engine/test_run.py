from economizer.engine.run import LINES_SHOWN, Tail


def test_only_the_last_lines_of_an_engine_are_shown() -> None:
    tail = Tail("m@full")
    tail.feed("".join(f"line {number}\n" for number in range(100)).encode())
    assert tail.lines == tuple(f"line {number}" for number in range(100 - LINES_SHOWN, 100))


def test_lines_are_put_together_from_chunks_and_a_progress_bar_ends_its_own() -> None:
    tail = Tail("m@full")
    for chunk in (b"load", b"ing\r\n10%\r20%\r", b"\n\xff\nun", b"\n"):
        tail.feed(chunk)
    assert tail.lines == ("loading", "10%", "20%", "\ufffd", "un")


def test_an_error_that_a_long_traceback_would_push_out_is_still_shown_first() -> None:
    tail = Tail("m@full")
    tail.feed(b"starting\nworker: ValueError: no such dtype\n" + b"  File somewhere\n" * 60 + b"see root cause above\n")
    assert tail.lines[0] == "worker: ValueError: no such dtype"
    assert tail.lines[-1] == "see root cause above"
    assert len(tail.lines) == 1 + LINES_SHOWN
