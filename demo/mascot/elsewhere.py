"""Other places: a beach, a bedroom, a bookshelf, a desert, the sky at sunset."""

import math
from random import Random

from demo.mascot import backdrops as land
from demo.mascot.backdrops import WHITE
from demo.mascot.brush import Canvas, Frame, curve, ellipse, limb, mix, rgb
from demo.mascot.character import INK, Imp, Pose


def beach(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#6cc5ee"), rgb("#bfe9f5"), bottom=210)
    land.glow(canvas, 96, 84, 80, rgb("#fff3b8"), 0.25)
    canvas.paint(ellipse(96, 84, 38, 38), rgb("#ffe27a"), volume=12, shade=rgb("#f7b955"))
    land.cloud(canvas, 300, 66, 44)
    land.cloud(canvas, 596, 104, 58)
    canvas.sky(rgb("#2f8fc4"), rgb("#48b4cf"), rgb("#8fe0d6"), top=206, bottom=400)
    land.waves(canvas, random, 216, 372, WHITE, 46)
    sail = (560, 196)
    canvas.paint([(sail[0], sail[1] - 66), (sail[0], sail[1]), (sail[0] + 44, sail[1])], rgb("#fff4dc"), volume=6)
    canvas.paint(
        [(sail[0] - 5, sail[1] - 56), (sail[0] - 5, sail[1]), (sail[0] - 32, sail[1])], rgb("#ef7b5d"), volume=5
    )
    canvas.paint([(518, 202), (614, 202), (598, 222), (534, 222)], rgb("#8a4f3a"), volume=5)
    shore = [372, 360, 378, 364, 350, 362, 344]
    land.hill(canvas, [y - 12 for y in shore], WHITE)
    land.hill(canvas, shore, rgb("#f6dfa6"), volume=16)
    land.speckle(canvas, random, 384, 520, rgb("#dcb877"), 260, 3.2)
    star = [
        (610 + math.cos(a) * r, 462 + math.sin(a) * r * 0.75)
        for a, r in ((math.radians(36 * i - 80), 27 if i % 2 == 0 else 12) for i in range(10))
    ]
    canvas.paint(curve(star, closed=True), rgb("#f0775a"), volume=7, outline=2, ink=INK)
    land.shadow(canvas, 330, 466, 74, rgb("#8a6a3c"), 0.4)
    ball = ellipse(128, 430, 38, 38)
    land.shadow(canvas, 132, 468, 38, rgb("#8a6a3c"), 0.4)
    canvas.paint(ball, rgb("#fff6e4"), volume=14, outline=2.4, ink=INK)
    for x in (96, 128, 160):
        canvas.paint(ellipse(x, 430, 9, 40), rgb("#4aa6c8"), inside=ball, alpha=0.9)
    pose = Pose(
        legs="jump", left_hand=(-78, -26), left_elbow=(-62, 14), right_hand=(80, -30), right_elbow=(62, 12),
        eyes="happy", mouth="open", scarf=((22, 8), (52, 4), (74, -14)), sprout=-12,
        tail=((26, 72), (62, 92), (92, 82), (100, 58)),
    )  # fmt: skip
    Imp(canvas, Frame(334, 248, 1.3, turn=-7), pose).draw()


def bedroom(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#4b4a86"), rgb("#6a5f9c"), bottom=400)
    for x in range(24, 720, 58):
        for y in range(22, 400, 58):
            land.twinkle(canvas, x + (y // 58 % 2) * 29, y, 5, rgb("#8b80bd"))
    canvas.paint(land.rounded(70, 44, 196, 206, 12), rgb("#8c5a44"), volume=6, outline=2, ink=INK)
    pane = land.rounded(84, 58, 168, 178, 6)
    canvas.paint(pane, rgb("#1d2860"))
    for _ in range(34):
        canvas.paint(ellipse(random.uniform(88, 248), random.uniform(62, 230), 1.2, 1.2), rgb("#fff6d8"))
    canvas.paint(ellipse(206, 104, 26, 26), rgb("#fdf0c4"), inside=pane)
    canvas.paint(ellipse(194, 98, 24, 24), rgb("#1d2860"), inside=pane)
    canvas.paint(land.box(164, 58, 8, 178), rgb("#8c5a44"), volume=2)
    canvas.paint(land.box(84, 144, 168, 8), rgb("#8c5a44"), volume=2)
    land.books(canvas, random, 500, 150, 170, 62)
    land.glow(canvas, 640, 300, 120, rgb("#ffcf7a"), 0.16)
    canvas.paint([(612, 288), (668, 288), (690, 340), (590, 340)], rgb("#ffdf9a"), volume=9, outline=2, ink=INK)
    canvas.paint(limb([(640, 342), (640, 400)], 5), rgb("#8a5a3c"), volume=4)
    canvas.paint(land.box(0, 400, 720, 112), rgb("#7a5144"))
    for y in (418, 446, 480):
        canvas.line([(0, y), (720, y)], rgb("#5f3d38"), 2)
    asleep_in_bed(canvas)
    for x, y, size in ((250, 196, 11), (282, 166, 15), (322, 128, 20)):
        for part in ([(x, y), (x + size, y)], [(x + size, y), (x, y + size)], [(x, y + size), (x + size, y + size)]):
            canvas.line(part, rgb("#f3ead9"), size * 0.24)


def asleep_in_bed(canvas: Canvas) -> None:
    canvas.paint(land.rounded(36, 214, 44, 240, 16), rgb("#9a6348"), volume=9, outline=2.4, ink=INK)
    canvas.paint(land.rounded(60, 366, 520, 96, 22), rgb("#9a6348"), volume=12, outline=2.4, ink=INK)
    canvas.paint(land.rounded(70, 336, 500, 78, 30), rgb("#f3ead9"), volume=14, outline=2.4, ink=INK)
    pillow = curve(
        [(80, 330), (100, 276), (160, 270), (232, 280), (252, 326), (236, 372), (150, 380), (90, 370)], closed=True
    )
    canvas.paint(pillow, rgb("#fff8ea"), volume=18, outline=2.4, ink=INK, shade=rgb("#b9a8c8"))
    pose = Pose(eyes="asleep", mouth="asleep", head_turn=18, sprout=-10, legs="lie", tail=((0, 60), (0, 62), (0, 64)))
    Imp(canvas, Frame(268, 322, 1.12, turn=-80), pose).draw()
    quilt = curve(
        [
            (284, 322),
            (300, 262),
            (370, 238),
            (450, 258),
            (520, 300),
            (576, 330),
            (590, 400),
            (580, 442),
            (430, 450),
            (300, 444),
            (276, 390),
        ],
        closed=True,
    )
    canvas.paint(quilt, rgb("#5fa3a8"), volume=26, outline=2.6, ink=INK)
    for i in range(7):
        for j in range(6):
            x, y = 300 + i * 44 + (j % 2) * 22, 262 + j * 36
            canvas.paint(ellipse(x, y, 6, 6), rgb("#f6d58a"), inside=quilt, alpha=0.85)


def reading(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#e9c9a2"), rgb("#f4dfbd"), bottom=520)
    canvas.paint(land.box(60, 40, 456, 480), rgb("#a86f4a"), volume=8, outline=2, ink=INK)
    canvas.paint(land.box(78, 58, 420, 450), rgb("#6e4433"))
    for foot in (158, 270, 382, 500):
        land.books(canvas, random, 84, foot, 408, 82)
    canvas.paint(land.box(0, 516, 576, 156), rgb("#b57f58"))
    for y in (540, 576, 622):
        canvas.line([(0, y), (576, y)], rgb("#935f42"), 2)
    rug = ellipse(288, 604, 238, 58)
    canvas.paint(rug, rgb("#b24a4f"), volume=8, outline=2, ink=INK)
    canvas.paint(ellipse(288, 602, 206, 46), rgb("#e7b56a"))
    canvas.paint(ellipse(288, 601, 192, 41), rgb("#c65d58"))
    land.shadow(canvas, 286, 610, 130, rgb("#3a1a2a"), 0.4)
    cushion = curve(
        [(150, 588), (200, 560), (288, 556), (376, 560), (426, 588), (376, 622), (288, 628), (200, 622)], closed=True
    )
    canvas.paint(cushion, rgb("#4f8fa8"), volume=18, outline=2.4, ink=INK)
    pose = Pose(
        legs="sit", look=(0, 0.9), mouth="small", left_hand=(-46, 44), right_hand=(46, 44),
        left_elbow=(-52, 40), right_elbow=(52, 40), scarf=((22, 8), (36, 20), (48, 34)),
        tail=((26, 72), (70, 92), (104, 74), (102, 44)),
    )  # fmt: skip
    Imp(canvas, Frame(286, 444, 1.42), pose).draw()
    land.open_book(canvas, [(212, 484), (360, 484), (352, 560), (220, 560)], rgb("#d9694f"))
    for x in (216, 356):
        canvas.paint(ellipse(x, 522, 15, 18), mix(rgb("#a58be0"), INK, 0.05), volume=8, outline=2.6, ink=INK)
    mug = land.rounded(462, 560, 44, 46, 8)
    canvas.paint(limb([(504, 572), (522, 582), (504, 596)], 4), rgb("#fff6e4"), outline=2, ink=INK)
    canvas.paint(mug, rgb("#fff6e4"), volume=8, outline=2.4, ink=INK)
    for x in (474, 490):
        canvas.line([(x, 550), (x + 6, 538), (x - 3, 526), (x + 3, 514)], WHITE, 3, alpha=0.6)


def desert(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#63bfe6"), rgb("#bfe6ea"), rgb("#fff0cd"), bottom=340)
    land.glow(canvas, 610, 96, 96, rgb("#fff2b0"), 0.25)
    canvas.paint(ellipse(610, 96, 42, 42), rgb("#fff0a8"), volume=12, shade=rgb("#f9cf6a"))
    canvas.paint([(30, 330), (70, 206), (176, 200), (214, 330)], rgb("#d98b62"), volume=14)
    canvas.paint([(180, 332), (206, 262), (286, 258), (318, 332)], rgb("#e09a6c"), volume=12)
    for y in (232, 262, 292):
        canvas.line(
            [(62 - (y - 206) * 0.2, y), (120, y - 4), (186 + (y - 206) * 0.24, y)], rgb("#c3734f"), 4, alpha=0.7
        )
    land.hill(canvas, [330, 312, 330, 300, 320, 296, 318], rgb("#f2c786"), volume=16)
    land.hill(canvas, [392, 360, 372, 398, 366, 372, 400], rgb("#ecb76f"), volume=22)
    for i in range(7):
        y = 392 + i * 20
        ripple = [(x, y + 6 * math.sin(x / 60 + i * 1.7)) for x in range(-20, 800, 40)]
        canvas.line(ripple, rgb("#d99c55"), 2, alpha=0.6)
    land.speckle(canvas, random, 400, 530, rgb("#c98c4c"), 120, 4)
    land.shadow(canvas, 146, 436, 56, rgb("#7a4a2c"), 0.35)
    land.cactus(canvas, 146, 436, 168)
    land.shadow(canvas, 676, 384, 30, rgb("#7a4a2c"), 0.35)
    land.cactus(canvas, 676, 384, 88)
    for x, y, r in ((262, 486, 26), (296, 494, 17), (610, 480, 20)):
        canvas.paint(ellipse(x, y, r * 1.3, r), rgb("#b9785a"), volume=r * 0.5, outline=2, ink=INK)
    land.shadow(canvas, 444, 468, 72, rgb("#7a4a2c"), 0.4)
    pose = Pose(
        legs="walk", look=(0.95, 0), head_turn=3, mouth="smile", right_hand=(58, 34), right_elbow=(50, 36),
        left_hand=(-56, 44), scarf=((-14, 10), (-48, 18), (-78, 8)), sprout=-20,
        tail=((-26, 72), (-62, 82), (-86, 62), (-82, 36)),
    )  # fmt: skip
    frame = Frame(440, 346, 1.12, turn=3)
    canvas.paint(limb(frame([(60, -66), (58, 108)]), 4.6), rgb("#8a5a3c"), volume=4, outline=2.2, ink=INK)
    Imp(canvas, frame, pose).draw()


def sunset(canvas: Canvas, random: Random) -> None:
    canvas.sky(rgb("#4b3f86"), rgb("#a2559a"), rgb("#f07f76"), rgb("#fdbf6e"), rgb("#ffe3a0"), bottom=560)
    land.stars(canvas, random, 34, 150)
    land.glow(canvas, 300, 548, 170, rgb("#fff0b0"), 0.2)
    canvas.paint(ellipse(300, 548, 84, 84), rgb("#fff2bd"))
    for x, y, size, tint in (
        (92, 300, 44, "#f29a8e"),
        (452, 392, 52, "#f7ad80"),
        (110, 468, 34, "#f9bd86"),
        (440, 180, 36, "#b8659c"),
    ):
        land.cloud(canvas, x, y, size, rgb(tint), 0.85)
    canvas.sky(rgb("#f5a86c"), rgb("#b4618c"), rgb("#5b4288"), top=556)
    for i in range(15):
        y = 566 + i * 10
        wide = 96 - i * 3 + random.uniform(-22, 22)
        canvas.line([(300 - wide, y), (300 + wide, y)], rgb("#ffe9ae"), 3.2, alpha=0.6)
    land.waves(canvas, random, 566, 712, rgb("#ffd2a0"), 40)
    land.hill(canvas, [540, 520, 548, 620, 704, 760, 800, 820], rgb("#4a3673"))
    for x, foot, tall in ((24, 548, 72), (58, 546, 54), (88, 550, 62)):
        land.pine(canvas, x, foot, tall, rgb("#3d2c66"))
    for x, y, s in ((398, 292, 13), (434, 270, 10), (370, 262, 9)):
        canvas.line(
            [
                (x - s, y - s * 0.4),
                (x - s * 0.4, y - s * 0.55),
                (x, y),
                (x + s * 0.4, y - s * 0.55),
                (x + s, y - s * 0.4),
            ],
            INK,
            2.4,
        )
    hand = Frame(252, 374, 1.06, turn=5)([(88, -44)])[0]
    canvas.line([hand, (330, 264), (290, 200)], rgb("#fff6e4"), 2)
    balloon = curve(
        [(286, 196), (248, 166), (232, 116), (252, 70), (292, 56), (332, 74), (346, 122), (326, 170)], closed=True
    )
    canvas.paint([(278, 206), (296, 206), (287, 190)], rgb("#d94b50"), outline=2, ink=INK)
    canvas.paint(balloon, rgb("#ee5f5b"), volume=30, outline=2.4, ink=INK)
    canvas.paint(ellipse(262, 98, 9, 19, 24), WHITE, blur=2, alpha=0.7)
    pose = Pose(
        legs="jump", look=(0.5, -0.7), head_turn=4, mouth="open", right_hand=(88, -44), right_elbow=(66, 6),
        left_hand=(-66, 34), scarf=((-12, 10), (-46, 22), (-80, 16)), sprout=-16,
        tail=((-26, 72), (-62, 92), (-90, 84), (-98, 60)),
    )  # fmt: skip
    Imp(canvas, Frame(252, 374, 1.06, turn=5), pose).draw()
