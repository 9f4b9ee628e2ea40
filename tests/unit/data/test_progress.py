from paxlike.data import progress as module
from paxlike.data.progress import progress


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS_PER_LINE", 0)
    with progress("reading", 2_000_000) as advance:
        advance(500_000)
        advance(1_500_000)
    output = capsys.readouterr().err
    lines = output.splitlines()
    assert [line.split(" MB,")[0] for line in lines] == [
        "reading: 0.5 of 2.0",
        "reading: 2.0 of 2.0",
        "reading: 2.0 of 2.0",
    ]
    assert "\x1b" not in output
