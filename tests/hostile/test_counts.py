"""How many hostile inputs there are: a table that shrinks is noticed."""

from tests.hostile import addresses, checkpoints, messages, pictures, requests, weights


def test_there_are_enough_of_each_kind() -> None:
    counts = {
        "addresses": len(addresses.DENIED) + len(addresses.REFUSED_BY_LOOKS),
        "pictures": len(pictures.REFUSED) + len(pictures.CLEANED),
        "LoRA files": len(weights.LORAS),
        "base models": len(weights.BASES) + len(checkpoints.CHECKPOINTS),
        "messages": len(messages.MESSAGES),
        "HTTP requests": len(requests.REFUSED) + len(requests.HARMLESS),
    }
    fewest = {
        "addresses": 190,
        "pictures": 145,
        "LoRA files": 46,
        "base models": 50,
        "messages": 103,
        "HTTP requests": 46,
    }
    assert {kind: count for kind, count in counts.items() if count < fewest[kind]} == {}, counts
