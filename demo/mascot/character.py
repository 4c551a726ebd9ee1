"""Imp: a small lilac imp with cream horns, a sprout on its head, a mustard scarf and a leaf at the end of its tail.

In its own coordinates the neck is (0, 0), y grows downwards, the head is 132 wide, and the feet are at y = 104.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from demo.mascot.brush import Canvas, Frame, Point, Shape, curve, ellipse, leaf, limb, mix, rgb

SKIN = rgb("#a58be0")
FACE = rgb("#cdbcf5")
BELLY = rgb("#f3e6d8")
HORN = rgb("#fbe9c6")
SCARF = rgb("#f4b13e")
STRIPE = rgb("#e0743c")
LEAF = rgb("#6fbf5b")
CHEEK = rgb("#f58fa8")
INK = rgb("#3d2c66")
EYE = rgb("#2b1f4d")
LINE = 2.6  # of the outlines


@dataclass(frozen=True)
class Pose:
    """What the imp does. `look` is the direction of its eyes, from -1 (left, up) to 1 (right, down)."""

    left_hand: Point = (-50, 52)
    right_hand: Point = (50, 52)
    left_elbow: Point | None = None
    right_elbow: Point | None = None
    legs: Literal["stand", "sit", "jump", "walk", "lie"] = "stand"
    head_turn: float = 0.0  # degrees
    look: Point = (0, 0)
    eyes: Literal["open", "happy", "asleep"] = "open"
    mouth: Literal["smile", "open", "small", "asleep"] = "smile"
    scarf: Sequence[Point] = ((22, 8), (34, 26), (30, 48))  # the loose end
    tail: Sequence[Point] = ((26, 72), (62, 84), (84, 62), (78, 36))
    sprout: float = 0.0  # degrees that the sprout is blown to the right
    hands_in_front: bool = False


class Imp:
    """Draws the imp on a canvas, from its tail to its face."""

    def __init__(self, canvas: Canvas, frame: Frame, pose: Pose) -> None:
        self.canvas, self.frame, self.pose = canvas, frame, pose

    def draw(self) -> None:
        self.tail()
        self.body()
        if not self.pose.hands_in_front:
            self.arms()
        self.scarf()
        self.head()
        if self.pose.hands_in_front:
            self.arms()

    # ---- helpers ----

    def _part(self, shapes: Shape | list[Shape], colour: tuple[int, int, int], volume: float = 12) -> None:
        k = self.frame.scale
        self.canvas.paint(self._placed(shapes), colour, volume=volume * k, outline=LINE * k, ink=INK)

    def _placed(self, shapes: Shape | list[Shape], frame: Frame | None = None) -> list[Shape]:
        to = frame or self.frame
        return [to(s) for s in shapes] if isinstance(shapes[0], list) else [to(shapes)]  # type: ignore[arg-type]

    def _mark(self, shape: Shape | list[Shape], colour: tuple[int, int, int], frame: Frame, **how: float) -> None:
        self.canvas.paint(self._placed(shape, frame), colour, **how)  # type: ignore[arg-type]

    # ---- parts, from the back to the front ----

    def tail(self) -> None:
        line = list(self.pose.tail)
        self._part(limb(line, 6, 4), mix(SKIN, INK, 0.15), 5)
        (ax, _), (bx, by) = line[-2], line[-1]
        sign = 1 if bx >= ax else -1
        for turn, size in ((-90 - 42, 25), (-90 + 42, 25)):
            self._part(leaf(bx, by + 3, size, 19, turn + sign * 8), LEAF, 6)

    def body(self) -> None:
        legs = self.pose.legs
        feet: dict[str, list[list[Point]]] = {
            "stand": [[(-20, 72), (-22, 94)], [(20, 72), (22, 94)]],
            "walk": [[(-16, 72), (-34, 90)], [(16, 72), (30, 92)]],
            "jump": [[(-20, 70), (-40, 84)], [(20, 70), (38, 92)]],
            "sit": [],
            "lie": [],
        }
        for path in feet[legs]:
            self._part(limb(path, 15, 12), SKIN, 9)
            (x, y) = path[-1]
            self._part(ellipse(x * 1.12, y + 3, 18, 11), mix(SKIN, INK, 0.12), 7)
        pear = [(0, -14), (24, -2), (37, 26), (44, 58), (30, 82), (0, 88), (-30, 82), (-44, 58), (-37, 26), (-24, -2)]
        torso = curve(pear, closed=True)
        self._part(torso, SKIN, 18)
        k = self.frame.scale
        self.canvas.paint(self.frame(ellipse(0, 54, 28, 32)), BELLY, volume=9 * k, blur=0.8 * k, shade=rgb("#d3b7b4"))
        if legs == "sit":
            for side in (-1, 1):
                self._part(limb([(side * 26, 74), (side * 44, 84)], 17, 14), SKIN, 9)
                self._part(ellipse(side * 52, 84, 15, 18, side * 12), mix(SKIN, INK, 0.12), 8)
                self._mark(ellipse(side * 53, 87, 7, 8), FACE, self.frame, alpha=0.8)

    def arms(self) -> None:
        for side, hand, elbow in (
            (-1, self.pose.left_hand, self.pose.left_elbow),
            (1, self.pose.right_hand, self.pose.right_elbow),
        ):
            shoulder = (side * 29.0, 16.0)
            middle = elbow or ((shoulder[0] + hand[0]) / 2 + side * 7, (shoulder[1] + hand[1]) / 2 + 3)
            self._part(limb([shoulder, middle, hand], 10.5, 14), SKIN, 7)

    def scarf(self) -> None:
        end = list(self.pose.scarf)
        self._part(limb(end, 9, 12), SCARF, 6)
        line = curve(end)
        for share in (0.62, 0.86):
            x, y = line[int(share * (len(line) - 1))]
            u, v = line[max(int(share * (len(line) - 1)) - 3, 0)]
            length = max(((x - u) ** 2 + (y - v) ** 2) ** 0.5, 1e-6)
            nx, ny = -(y - v) / length, (x - u) / length
            band = limb([(x - nx * 8.5, y - ny * 8.5), (x + nx * 8.5, y + ny * 8.5)], 2.6)
            self._mark(band, STRIPE, self.frame)
        wrap = curve([(-40, -10), (0, 6), (40, -10), (45, 3), (36, 16), (0, 26), (-36, 16), (-45, 3)], closed=True)
        self._part(wrap, SCARF, 9)
        for x, low in ((-27, 13), (-13, 18), (2, 19.5)):
            self._mark(limb([(x, low - 11), (x + 1, low)], 2.6), STRIPE, self.frame)
        self._part(ellipse(21, 11, 12, 11, -20), mix(SCARF, STRIPE, 0.15), 6)

    def head(self) -> None:
        at = self.frame.about(0, 0, self.pose.head_turn)
        whole, self.frame = self.frame, at
        try:
            self._horns_and_sprout()
            skull = curve(
                [
                    (0, -108),
                    (40, -98),
                    (65, -62),
                    (64, -32),
                    (42, -6),
                    (0, 3),
                    (-42, -6),
                    (-64, -32),
                    (-65, -62),
                    (-40, -98),
                ],
                closed=True,
            )
            self._part(skull, SKIN, 24)
            self._face(at, at(skull))
        finally:
            self.frame = whole

    def _horns_and_sprout(self) -> None:
        lean = self.pose.sprout
        top = (lean * 0.35, -130.0)
        self._part(limb([(0, -100), (lean * 0.1, -116), top], 3.6, 2.8), mix(LEAF, INK, 0.25), 3)
        for turn, length, width in ((-150 + lean, 32, 22), (-38 + lean, 42, 27)):
            blade = leaf(top[0], top[1] + 2, length, width, turn)
            self._part(blade, LEAF, 8)
            rib = leaf(top[0], top[1] + 2, length * 0.78, 2.4, turn)
            self._mark(rib, mix(LEAF, INK, 0.4), self.frame, alpha=0.7)
        for side in (-1, 1):
            horn = curve(
                [(side * 28, -92), (side * 33, -114), (side * 47, -127), (side * 54, -106), (side * 52, -80)],
                closed=True,
            )
            self._part(horn, HORN, 8)
            for low, high in (((33, -103), (53, -98)), ((38, -113), (53, -109))):
                band = [(side * low[0], low[1]), (side * high[0], high[1])]
                self._mark(limb(band, 1.2), mix(HORN, INK, 0.35), self.frame, alpha=0.6)

    def _face(self, at: Frame, skull: Shape) -> None:
        lx, ly = self.pose.look
        dx, dy = lx * 11, ly * 7
        k = at.scale
        patch = [ellipse(-23 + dx, -46 + dy, 30, 31), ellipse(23 + dx, -46 + dy, 30, 31), ellipse(dx, -26 + dy, 34, 22)]
        self.canvas.paint([at(s) for s in patch], FACE, blur=1.6 * k, alpha=0.95, inside=skull)
        for side in (-1, 1):
            cheek = at(ellipse(side * 42 + dx, -24 + dy, 11, 7.5))
            self.canvas.paint(cheek, CHEEK, blur=2.4 * k, alpha=0.75, inside=skull)
            self._eye(at, side, side * 24 + dx * 1.25, -46 + dy * 1.3)
        self._mouth(at, dx * 1.25, -22 + dy * 1.2)
        shine = ellipse(-30, -90, 15, 6.5, -32)
        self._mark(shine, (255, 255, 255), at, blur=2.2 * k, alpha=0.55)

    def _eye(self, at: Frame, side: int, x: float, y: float) -> None:
        lx, ly = self.pose.look
        if self.pose.eyes in ("happy", "asleep"):
            bow = -9 if self.pose.eyes == "happy" else 7
            lid = [(x + u * 12, y + bow * (1 - u * u)) for u in (-1, -0.5, 0, 0.5, 1)]
            self._mark(limb(lid, 2.6), EYE, at)
            if self.pose.eyes == "asleep":
                self._mark(limb([(x + side * 11, y), (x + side * 15, y + 4)], 1.8), EYE, at)
            return
        height = 16.5
        self._mark(ellipse(x, y, 12.5, height), EYE, at)
        self._mark(ellipse(x + lx, y + height * 0.45, 8.5, height * 0.42), rgb("#7a5bc7"), at, blur=1.2 * at.scale)
        self._mark(ellipse(x - 4 + lx * 3, y - height * 0.38 + ly * 2, 4.6, 5), (255, 255, 255), at)
        self._mark(ellipse(x + 4.5 + lx * 2, y + height * 0.3 + ly, 2.2, 2.4), (255, 255, 255), at)

    def _mouth(self, at: Frame, x: float, y: float) -> None:
        if self.pose.mouth == "open":
            jaw = curve(
                [(x - 13, y - 3), (x, y - 1), (x + 13, y - 3), (x + 8, y + 11), (x, y + 14), (x - 8, y + 11)],
                closed=True,
            )
            self._mark(jaw, rgb("#7c2f4d"), at)
            self.canvas.paint(at(ellipse(x, y + 12, 8, 6)), rgb("#f07f8f"), inside=at(jaw))
            self._mark([(x + 4, y - 2), (x + 10, y - 2), (x + 7.4, y + 5)], (255, 255, 255), at)
        elif self.pose.mouth == "small":
            self._mark(ellipse(x, y + 2, 3.6, 4.4), rgb("#7c2f4d"), at)
        else:
            wide = 12 if self.pose.mouth == "smile" else 6
            line = [(x + u * wide, y + wide * 0.55 * (1 - u * u)) for u in (-1, -0.5, 0, 0.5, 1)]
            self._mark(limb(line, 2), EYE, at)
            if self.pose.mouth == "smile":
                self._mark([(x + 3.4, y + 5.6), (x + 8.4, y + 4), (x + 7, y + 11)], (255, 255, 255), at)
