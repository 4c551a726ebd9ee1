"""Places with weather: a meadow, a hill at night, snow, an autumn wood, rain."""

from random import Random

from demo.mascot import backdrops as land
from demo.mascot.backdrops import WHITE
from demo.mascot.brush import Canvas, Frame, curve, ellipse, leaf, limb, mix, rgb
from demo.mascot.character import INK, Imp, Pose


def meadow(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#8fd0f5"), rgb("#d8f0f7"), rgb("#fdf6dd"), bottom=430)
    land.cloud(canvas, 120, 110, 62)
    land.cloud(canvas, 520, 170, 48)
    land.cloud(canvas, 365, 66, 34)
    land.hill(canvas, [350, 318, 340, 372, 330, 318], rgb("#a9d6a0"))
    for x, foot, tall in ((70, 372, 96), (112, 376, 70), (548, 366, 104), (600, 372, 76)):
        land.pine(canvas, x, foot, tall, rgb("#6fb487"))
    land.hill(canvas, [392, 372, 402, 398, 372, 386], rgb("#93cc72"), volume=20)
    land.hill(canvas, [470, 456, 450, 452, 462, 476], rgb("#7bbf5c"), volume=24)
    land.grass(canvas, random, 402, 470, rgb("#6fb354"), 60, 14)
    land.grass(canvas, random, 480, 600, rgb("#62ab4b"), 90, 22)
    for x, y, size, colour in (
        (74, 500, 13, "#f7a8c0"),
        (132, 548, 15, "#ffffff"),
        (552, 512, 14, "#ffffff"),
        (506, 570, 16, "#f7a8c0"),
        (590, 566, 13, "#c9a6f2"),
    ):
        land.flower(canvas, x, y, size, rgb(colour))
    land.shadow(canvas, 322, 562, 96, rgb("#1f4a2c"))
    wave = Pose(left_hand=(-80, -18), left_elbow=(-60, 24), mouth="open", right_hand=(48, 54), head_turn=4)
    Imp(canvas, Frame(322, 394, 1.55), wave).draw()
    land.grass(canvas, random, 606, 640, rgb("#559c43"), 70, 26)


def night(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#141a45"), rgb("#2b3478"), rgb("#5a5aa8"), rgb("#8f7fc0"))
    land.stars(canvas, random, 150, 470)
    land.moon(canvas, 386, 138, 62)
    land.cloud(canvas, 96, 250, 40, rgb("#5a62a6"), 0.7)
    land.cloud(canvas, 458, 286, 34, rgb("#5a62a6"), 0.7)
    land.hill(canvas, [520, 470, 500, 540, 500, 486], rgb("#3a3f80"))
    for x, foot, tall in ((30, 520, 120), (74, 524, 84), (462, 522, 132), (420, 528, 90), (500, 530, 100)):
        land.pine(canvas, x, foot, tall, rgb("#2c3670"))
    land.hill(canvas, [640, 592, 556, 560, 600, 640], rgb("#3f6a6b"), volume=24)
    land.grass(canvas, random, 600, 704, rgb("#356064"), 110, 20)
    land.shadow(canvas, 236, 612, 92, rgb("#0d1436"), 0.5)
    pose = Pose(legs="sit", look=(0.75, -0.8), head_turn=9, mouth="smile", left_hand=(-56, 74), right_hand=(50, 72))
    Imp(canvas, Frame(236, 492, 1.22), pose).draw()
    for _ in range(16):
        u, v = random.uniform(20, 490), random.uniform(430, 680)
        land.glow(canvas, u, v, 9, rgb("#ffe98a"), 0.22)
        canvas.paint(ellipse(u, v, 2.1, 2.1), rgb("#fff8cf"))


def snow(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#9fbfe0"), rgb("#cfe0f0"), rgb("#f3ecec"), bottom=420)
    land.hill(canvas, [330, 270, 318, 286, 330, 300], rgb("#c2d4ea"))
    for x, foot, tall in ((46, 400, 190), (118, 408, 136), (506, 398, 206), (572, 412, 160), (440, 404, 118)):
        land.pine(canvas, x, foot, tall, rgb("#4d8477"), snow=0.42)
    land.hill(canvas, [396, 408, 392, 404, 390, 400], rgb("#e4eef9"), volume=22)
    land.hill(canvas, [476, 452, 466, 470, 448, 466], rgb("#f7fbff"), volume=30)
    land.speckle(canvas, random, 480, 600, rgb("#cfdcf0"), 90, 5)
    land.shadow(canvas, 478, 520, 62, rgb("#5a6fa8"), 0.3)
    for y, r in ((478, 48.0), (408, 34.0), (356, 25.0)):
        canvas.paint(
            ellipse(478, y, r, r), WHITE, volume=r * 0.5, outline=2.2, ink=rgb("#6c7fae"), shade=rgb("#aebde0")
        )
    for x, y, r in ((470, 350, 3.0), (486, 350, 3.0), (478, 396, 3.2), (478, 412, 3.2), (478, 428, 3.2)):
        canvas.paint(ellipse(x, y, r, r), INK)
    canvas.paint([(476, 356), (478, 363), (448, 364)], rgb("#ee8b3a"), outline=1.5, ink=INK)
    for path in ([(448, 404), (424, 386), (410, 384)], [(508, 404), (532, 384), (544, 388)]):
        canvas.line(path, rgb("#6b4a3a"), 4)
    land.shadow(canvas, 242, 552, 92, rgb("#5a6fa8"), 0.35)
    pose = Pose(
        look=(-1, -0.1), head_turn=-5, mouth="small", sprout=26, scarf=((22, 8), (60, 12), (92, 2)),
        left_hand=(-30, 46), right_hand=(30, 46), left_elbow=(-48, 38), right_elbow=(48, 38),
        tail=((26, 72), (66, 88), (92, 70), (90, 44)),
    )  # fmt: skip
    Imp(canvas, Frame(242, 396, 1.44), pose).draw()
    land.flakes(canvas, random, 170, 608)


def autumn(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#ffe9b8"), rgb("#f9c987"), rgb("#e59a5c"))
    tints = [rgb(c) for c in ("#d9572f", "#ef8b33", "#f4b942", "#b83f34", "#c98a2e")]
    for x, wide, tint in ((70, 26, "#b57a55"), (210, 18, "#c58d63"), (500, 20, "#c58d63"), (622, 32, "#a86c4b")):
        canvas.paint(limb([(x, 700), (x + 8, 380), (x - 6, -20)], wide, wide * 0.7), rgb(tint), volume=wide * 0.6)
    for _ in range(230):
        u, v = random.uniform(-20, 692), abs(random.gauss(0, 95))
        size = random.uniform(14, 34)
        blade = leaf(u, v, size, size * 0.55, random.uniform(0, 360))
        canvas.paint(blade, mix(random.choice(tints), rgb("#ffe9b8"), random.uniform(0, 0.35)), volume=4)
    land.hill(canvas, [560, 540, 556, 548, 562], rgb("#c9773c"), volume=20)
    for _ in range(190):
        u, v = random.uniform(-10, 682), random.uniform(556, 672)
        size = random.uniform(14, 28)
        canvas.paint(leaf(u, v, size, size * 0.5, random.uniform(0, 360)), random.choice(tints), volume=4)
    pose = Pose(
        eyes="happy", mouth="open", head_turn=-6, left_hand=(-56, -10), left_elbow=(-62, 26), right_hand=(57, -12),
        right_elbow=(64, 26), sprout=8, scarf=((20, 8), (30, 30), (24, 54)), hands_in_front=True,
    )  # fmt: skip
    Imp(canvas, Frame(340, 470, 2.5), pose).draw()
    for x, y, size, turn in (
        (92, 330, 40, 30),
        (596, 262, 44, 150),
        (560, 520, 38, 70),
        (120, 560, 42, -30),
        (76, 150, 34, 100),
    ):
        colour = random.choice(tints)
        canvas.paint(leaf(x, y, size, size * 0.55, turn), colour, volume=7, outline=1.8, ink=INK)
        canvas.paint(leaf(x, y, size * 0.85, 2.6, turn), mix(colour, INK, 0.4), alpha=0.7)


def rain(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#7f93b8"), rgb("#a9b9cf"), rgb("#cdd6d8"), bottom=500)
    for x, y, size in ((90, 60, 66), (290, 36, 74), (460, 80, 60)):
        land.cloud(canvas, x, y, size, rgb("#93a3c0"), 0.95)
    land.hill(canvas, [420, 396, 414, 388, 410], rgb("#93b3a4"))
    for x, foot, tall in ((40, 430, 120), (96, 436, 84), (470, 430, 132), (420, 440, 90)):
        land.pine(canvas, x, foot, tall, rgb("#5f8f86"))
    land.hill(canvas, [470, 452, 460, 450, 470], rgb("#7fa878"), volume=20)
    land.grass(canvas, random, 470, 560, rgb("#6d9a68"), 60, 18)
    path = [(150, 700), (190, 560), (226, 470), (300, 470), (342, 560), (400, 700)]
    canvas.paint(path, rgb("#b7a592"), volume=12)
    for x, y, wide in ((268, 632, 120), (150, 580, 44), (420, 606, 58)):
        canvas.paint(ellipse(x, y, wide, wide * 0.22), rgb("#8fb3d0"), volume=6, outline=1.6, ink=rgb("#5d7f9f"))
        for share in (0.35, 0.65):
            ring = ellipse(x - wide * 0.1, y, wide * share, wide * 0.22 * share)
            canvas.line([*ring, ring[0]], WHITE, 1.3, alpha=0.6)
    land.shadow(canvas, 262, 616, 66, rgb("#33456b"), 0.35)
    frame = Frame(262, 488, 1.16)
    umbrella(canvas, frame)
    pose = Pose(
        look=(-0.7, -0.5), mouth="open", head_turn=-4, right_hand=(56, 30), right_elbow=(52, 40),
        left_hand=(-72, 6), left_elbow=(-56, 30), tail=((-26, 72), (-62, 84), (-84, 62), (-78, 36)),
        scarf=((20, 8), (26, 28), (20, 50)),
    )  # fmt: skip
    Imp(canvas, frame, pose).draw()
    for _ in range(150):
        u, v = random.uniform(-20, 540), random.uniform(-20, 690)
        dry = 136 < u < 476 and v > 180
        if not dry:
            canvas.line([(u, v), (u - 4, v + 17)], rgb("#e6f0fa"), 1.7, alpha=0.75)
    for x, y, size, colour in (
        (60, 590, 14, "#8f9fe0"),
        (92, 622, 16, "#c9a6f2"),
        (474, 560, 15, "#8f9fe0"),
        (44, 644, 15, "#f2b3cf"),
    ):
        land.flower(canvas, x, y, size, rgb(colour))


def umbrella(canvas: Canvas, frame: Frame) -> None:
    pole = frame([(56, 44), (50, -130), (44, -196)])
    canvas.paint(limb(pole, 3.6), rgb("#8a5a3c"), volume=2, outline=2, ink=INK)
    dome = frame([(-108, -150), (-84, -206), (-30, -244), (44, -256), (112, -238), (162, -196), (184, -138)])
    hem = frame(
        [
            (184, -138),
            (148, -152),
            (112, -140),
            (76, -154),
            (38, -142),
            (0, -156),
            (-36, -146),
            (-72, -160),
            (-108, -150),
        ]
    )
    canopy = [*curve(dome), *curve(hem)]
    canvas.paint(canopy, rgb("#e0564f"), volume=20, outline=2.6, ink=INK)
    for u, v in ((-36, -146), (38, -142), (112, -140)):
        rib = frame([(44, -256), ((44 + u) / 2 + (u - 38) * 0.22, -208), (u, v)])
        canvas.line(rib, rgb("#a93a3f"), 2.4)
    canvas.paint(limb(frame([(44, -258), (43, -268)]), 3.4), rgb("#8a5a3c"), outline=2, ink=INK)
