"""The ledger as a plain model: dictionaries and sums, for the state machine to compare the real one with."""

from dataclasses import dataclass, field

from core.errors import IllegalMove, ImprintError, InsufficientCredits, KeyReused

Refusal = type[ImprintError]
STATES = {"settle": "settled", "release": "released", "expire": "expired"}


@dataclass
class ModelHold:
    owner: str
    amount: int
    state: str = "held"
    settled: int = 0
    refunded: int = 0
    resolution: str = ""  # the id that the real ledger gave


@dataclass
class Model:
    """`answers` maps an owner's key to the request and the id that it got; `None` stands for a new id."""

    opened: set[str] = field(default_factory=set)
    granted: dict[str, int] = field(default_factory=dict)
    holds: dict[str, ModelHold] = field(default_factory=dict)
    trainings: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str], tuple[object, str]] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)

    def sums(self, owner: str) -> tuple[int, int, int, int]:
        """Granted, spent, held, available."""
        mine = [hold for hold in self.holds.values() if hold.owner == owner]
        granted = self.granted.get(owner, 0)
        spent = sum(hold.settled - hold.refunded for hold in mine)
        held = sum(hold.amount for hold in mine if hold.state == "held")
        return granted, spent, held, granted - spent - held

    def expect_grant(self, owner: str, amount: int, key: str) -> Refusal | str | None:
        """The error that it must raise, the id that it must give again, or None for a new id."""
        return self._answer(owner, key, ("grant", amount))

    def expect_hold(self, owner: str, training: str, amount: int, key: str) -> Refusal | str | None:
        if owner not in self.opened:
            return InsufficientCredits
        answer = self._answer(owner, key, ("hold", training, amount))
        if answer is not None:
            return answer
        if training in self.trainings:
            return IllegalMove
        return InsufficientCredits if self.sums(owner)[3] < amount else None

    def expect_end(self, hold_id: str, kind: str, amount: int, key: str | None) -> Refusal | str | None:
        hold = self.holds[hold_id]
        answer = self._answer(hold.owner, key, (kind, hold_id, amount)) if key else None
        if answer is not None:
            return answer
        if hold.state == "held":
            return IllegalMove if amount > hold.amount else None
        same = hold.state == STATES[kind] and hold.settled == amount
        return hold.resolution if same else IllegalMove

    def expect_refund(self, hold_id: str, amount: int, key: str) -> Refusal | str | None:
        hold = self.holds[hold_id]
        answer = self._answer(hold.owner, key, ("refund", hold_id, amount))
        if answer is not None:
            return answer
        return IllegalMove if hold.refunded + amount > hold.settled else None

    def granted_now(self, owner: str, amount: int, key: str, entry: str) -> None:
        self.opened.add(owner)
        self.granted[owner] = self.granted.get(owner, 0) + amount
        self._keep(owner, key, ("grant", amount), entry)

    def held_now(self, owner: str, training: str, amount: int, key: str, hold_id: str) -> None:
        self.holds[hold_id] = ModelHold(owner, amount)
        self.trainings.add(training)
        self._keep(owner, key, ("hold", training, amount), hold_id)

    def ended_now(self, hold_id: str, kind: str, amount: int, key: str | None, entry: str) -> None:
        hold = self.holds[hold_id]
        hold.state, hold.settled, hold.resolution = STATES[kind], amount, entry
        self._keep(hold.owner, key, (kind, hold_id, amount), entry)

    def refunded_now(self, hold_id: str, amount: int, key: str, entry: str) -> None:
        hold = self.holds[hold_id]
        hold.refunded += amount
        self._keep(hold.owner, key, ("refund", hold_id, amount), entry)

    def _answer(self, owner: str, key: str, request: object) -> Refusal | str | None:
        if (owner, key) not in self.answers:
            return None
        before, answer = self.answers[owner, key]
        return answer if before == request else KeyReused

    def _keep(self, owner: str, key: str | None, request: object, answer: str) -> None:
        if key is not None:
            self.answers[owner, key] = (request, answer)
        self.entries[owner] = self.entries.get(owner, 0) + 1
