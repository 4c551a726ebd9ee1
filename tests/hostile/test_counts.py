"""How many hostile inputs there are: a table that shrinks is noticed."""

from tests.hostile import addresses, checkpoints, messages, pictures, weights


def test_there_are_enough_of_each_kind() -> None:
    counts = {
        "addresses": len(addresses.DENIED) + len(addresses.REFUSED_BY_LOOKS),
        "pictures": len(pictures.REFUSED) + len(pictures.CLEANED),
        "LoRA files": len(weights.LORAS),
        "base models": len(weights.BASES) + len(checkpoints.CHECKPOINTS),
        "messages": len(messages.MESSAGES),
    }
    fewest = {"addresses": 190, "pictures": 145, "LoRA files": 46, "base models": 50, "messages": 103}
    assert {kind: count for kind, count in counts.items() if count < fewest[kind]} == {}, counts
