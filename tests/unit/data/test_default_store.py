import pytest

from paxlike.config import DataConfig
from paxlike.data import default_store as module
from paxlike.data.default_store import default_store
from paxlike.data.input_files import standard_library
from paxlike.data.store import open_store


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


FEW = [path for path in standard_library() if path.parent.name == "json"]
BYTES = DataConfig(tokenizer="bytes")


def test_prepared_once_for_each_setting(cache, monkeypatch):
    settings = [
        BYTES,
        DataConfig(tokenizer="sentencepiece", tokenizer_vocab=500),
        DataConfig(tokenizer="sentencepiece", tokenizer_vocab=600),
        DataConfig(tokenizer="bytes", packing="whole", sequence_length=64),
        DataConfig(tokenizer="bytes", packing="whole", sequence_length=128),
    ]
    folders = [default_store(data, FEW) for data in settings]
    assert len(set(folders)) == len(settings) == len(list(cache.iterdir()))
    monkeypatch.setattr(module, "prepare_files", None)
    assert [default_store(data, FEW) for data in settings] == folders
    # Packing split is read at any length, and bytes need no vocabulary.
    assert (
        default_store(DataConfig(tokenizer="bytes", sequence_length=99, tokenizer_vocab=7), FEW)
        == folders[0]
    )


def test_other_files_make_another_store(cache, tmp_path):
    assert default_store(BYTES, FEW) != default_store(BYTES, FEW[1:])
    file = tmp_path / "a.py"
    file.write_text("print('before')")
    before = default_store(BYTES, [file])
    file.write_text("print('after it')")
    assert default_store(BYTES, [file]) != before


def test_another_process_may_be_first(cache, monkeypatch):
    real, times = module.prepare_files, []

    def beaten(files, config):
        times.append(1)
        real(files, config)  # The other process.
        return real(files, config)

    monkeypatch.setattr(module, "prepare_files", beaten)
    folder = default_store(BYTES, FEW)
    open_store(folder).verify()
    assert times == [1] and list(cache.iterdir()) == [folder]


@pytest.mark.slow
def test_the_standard_library_is_enough_to_learn_from(cache):
    store = open_store(default_store(DataConfig()))
    counts = store.manifest.splits
    assert counts["train"].tokens > 2_000_000 and counts["validation"].tokens > 30_000
    assert 3 < counts["train"].text_bytes / counts["train"].tokens < 4
