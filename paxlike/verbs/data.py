"""Verbs that make and check token stores."""

import sys

from paxlike.verbs.flags import flags_of, take


def prepare_data(arguments: list[str]) -> None:
    from paxlike.data.prepare import PrepareConfig, prepare

    prepare(flags_of(PrepareConfig, arguments, "paxlike data prepare"))


def materialise_data(arguments: list[str]) -> None:
    from paxlike.data.materialise import MaterialiseConfig, materialise

    materialise(flags_of(MaterialiseConfig, arguments, "paxlike data materialise"))


def verify_data(arguments: list[str]) -> None:
    path, rest = take(arguments, "STORE", "data verify")
    if path is None or rest:
        print(
            "usage: paxlike data verify STORE\n\nReads every byte of a token store and compares it with the manifest."
        )
        sys.exit(2 if path else 0)
    from paxlike.data.store import open_store

    store = open_store(path)
    store.verify()
    print(f"{path}: whole, fingerprint {store.fingerprint}")
