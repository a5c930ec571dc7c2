"""Procedural street scenes with exact labels: the dataset that needs no download.

A scene is built in metres (x to the right of the road's centre line, y up, z ahead of the camera) and
painted from far to near. The canvas is RGBA with the Cityscapes train id in the alpha channel: one call
draws a shape into image and label, and the two cannot disagree. Texture, shadows, light and sensor noise
are then put on the colours alone.

To add an object, write `_thing(scene, x, z)` that draws in a `Frame`, and `scene.add` it.
"""

import functools
import itertools
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rtseg_jax.data.sets.streets.canvas import (
    AMBER,
    ARC,
    BARK,
    BICYCLE,
    BLACK,
    BUILDING,
    BUS,
    CAR,
    CIRCLE,
    CLOTHES,
    FACADES,
    FAR,
    FENCE,
    GLASS,
    GRASS,
    GREEN,
    HAIR,
    HEADINGS,
    LEAVES,
    LIGHT,
    MIN_SIZE,
    MOTORCYCLE,
    PAINTS,
    PANES,
    PAVING,
    PERSON,
    PLATES,
    POLE,
    RED,
    RIDER,
    ROAD,
    ROOFS,
    SIDEWALK,
    SIGN,
    SKINS,
    SKY,
    STEEL,
    TERRAIN,
    TIMBER,
    TRAIN,
    TRUCK,
    VEGETATION,
    VOID,
    WALL,
    WHITE,
    Colour,
    Frame,
    Painter,
    Pair,
    Scene,
    mix,
    scale,
    textures,
    window,
)

# Every frame has one of each; any 16 frames in a row have every pair.
VEHICLES = (TRAIN, MOTORCYCLE, BUS, TRUCK)
FURNITURE = (WALL, LIGHT, FENCE, BICYCLE)


def _backdrop(scene: Scene) -> None:
    """What closes the street: roofs and trees in the haze."""
    reach = FAR * scene.size[1] / scene.focal
    x = scene.eye_x - reach
    while x < scene.eye_x + reach:
        width, height = scene.uniform(6.0, 22.0), scene.uniform(5.0, 22.0)
        if scene.chance(0.55):
            house = Frame(scene, x, FAR, BUILDING)
            house.poly(scene.paint(ROOFS), 0.0, height, width, height, 0.5 * width, height + 3.0)
            house.rect(0.0, width, 0.0, height, scene.paint(FACADES))
        else:
            trees, leaf = Frame(scene, x, FAR, VEGETATION), scene.paint(LEAVES)
            for _ in range(4):
                u, y, light = (
                    scene.random() * width,
                    scene.uniform(2.0, 5.0),
                    scene.uniform(0.8, 1.2),
                )
                trees.disc(u, y, scene.uniform(3.0, 6.0), scale(leaf, light))
        x += width * scene.uniform(0.7, 1.0)


def _ground(scene: Scene) -> None:
    """Road, markings, kerbs, verges, pavements."""
    near, kerb, half = scene.near, scene.kerb, scene.half
    grey, paving, grass = scene.uniform(72.0, 132.0), scene.paint(PAVING), scene.paint(GRASS)
    asphalt = (grey + scene.uniform(-6.0, 8.0), grey, grey + scene.uniform(-6.0, 10.0))
    white = mix(asphalt, WHITE, scene.uniform(0.55, 1.0))
    scene.ground(-kerb, kerb, near, FAR, ROAD, asphalt)
    for side in (-1.0, 1.0):
        path, wall, edge = side * (kerb + scene.verge), side * scene.facade, side * half
        scene.ground(side * kerb, path, near, FAR, TERRAIN, grass)
        scene.ground(path, wall, near, FAR, SIDEWALK, paving)
        z = near + scene.random()
        while z < 30.0:  # joints between slabs
            scene.ground(path, wall, z, z + 0.06, SIDEWALK, scale(paving, 0.82))
            z += 0.8 + 0.08 * z
        scene.ground(side * kerb, side * (kerb + 0.22), near, FAR, SIDEWALK, scale(paving, 1.15))
        scene.ground(side * kerb, side * (kerb - 0.2), near, FAR, ROAD, scale(asphalt, 0.8))
        if scene.chance(0.9):
            scene.ground(edge, edge - 0.14 * side, near, FAR, ROAD, white)
    for _ in scene.several(6):  # repairs and covers
        x, z, k = scene.uniform(-half, half), scene.uniform(near, 30.0), scene.uniform(0.7, 1.2)
        width, length = scene.uniform(0.5, 2.5), scene.uniform(0.4, 6.0)
        scene.ground(x, min(x + width, kerb), z, z + length, ROAD, scale(asphalt, k))
    z, gap = near + 6.0 * scene.random(), scene.pick((3.0, 4.5, 6.0, 0.0))
    while z < 90.0:
        scene.ground(-0.08, 0.08, z, z + 3.0, ROAD, white)
        z += 3.0 + gap
    for rail in scene.rails:
        scene.ground(*rail, ROAD, scale(asphalt, 0.6))
    for stripe in range(int(2.0 * kerb - 0.4) if scene.zebra else 0):
        x = stripe + 0.2 - kerb
        scene.ground(x, x + 0.5, scene.crossing, scene.crossing + 3.0, ROAD, white)


# The sides of the street. Each function fills one stretch, z to z + length, of one side, -1 left or 1 right.


def _building(scene: Scene, side: float, z: float, length: float, setback: float = 0.0) -> None:
    x, shaded = side * (scene.facade + setback), side == scene.sun
    front, gable = Frame(scene, x, z, BUILDING, 0.0, 1.0), Frame(scene, x, z, BUILDING, side)
    front.light, gable.light = 1.0 - 0.28 * scene.mood.sun * shaded, 0.85
    storey, floors = scene.uniform(2.9, 3.6), scene.pick((1, 2, 2, 3, 3, 4, 5, 6))
    colour, shop = scene.paint(FACADES), floors > 1 and scene.chance(0.45)
    trim, height = mix(colour, WHITE, scene.uniform(0.1, 0.6)), floors * storey + 0.6
    if shaded and scene.mood.sun:
        far = x - side * height * scene.uniform(0.4, 0.9)
        ground = ((x, z), (far, z - 0.3 * height), (far, z + length), (x, z + length))
        scene.shadow(ground, 0.45 * scene.mood.sun)
    gable.rect(0.0, 9.0, 0.0, height, colour)
    if floors < 4 and scene.chance(0.6):
        ridge = height + scene.uniform(1.8, 3.2)
        gable.poly(colour, 0.0, height, 9.0, height, 4.5, ridge)
        v, eaves = 4.5 * side, ((0.0, 0.0, height), (length, 0.0, height))
        front.face((*eaves, (length, v, ridge), (0.0, v, ridge)), scene.paint(ROOFS))
    front.rect(0.0, length, 0.0, height, colour)
    front.rect(0.0, length, height - 0.35, height, trim)
    _windows(front, length, storey, range(int(shop), floors), colour, trim)
    if z < 50.0 and scene.chance(0.6):
        _windows(gable, 9.0, storey, range(floors), colour, trim)
    u = scene.uniform(0.2, 0.7) * length
    if shop:
        sign = scene.paint(PAINTS)
        front.rect(0.3, length - 0.3, 0.4, 2.6, AMBER if scene.mood.lamps else scene.paint(PANES))
        for goods in scene.several(4):
            top = scene.uniform(0.9, 1.9)
            front.rect(2.0 * goods, 2.0 * goods + 0.9, 0.5, top, scene.paint(CLOTHES))
        front.rect(0.0, length, 2.6, 3.3, sign)
        front.rect(0.2 * length, 0.7 * length, 2.8, 3.1, mix(sign, WHITE, 0.8))
    front.rect(u - 0.15, u + 1.25, 0.0, 2.5, trim)
    front.rect(u, u + 1.1, 0.1, 2.35, scene.paint(PAINTS))


def _windows(
    frame: Frame, length: float, storey: float, floors: range, colour: Colour, trim: Colour
) -> None:
    """A band of glass for each floor, cut by piers of wall: cheaper than window by window."""
    scene = frame.scene
    count, pier = max(2, int(length / scene.uniform(1.9, 3.4))), scene.uniform(0.3, 0.65)
    pitch, glass, panes = length / count, scene.paint(PANES), (*PANES, WHITE)
    sill, lintel = scene.uniform(0.8, 1.1), storey - scene.uniform(0.4, 0.8)
    for floor in floors:
        y = floor * storey + 0.3
        frame.rect(0.0, length, y + sill - 0.14, y + sill, trim)
        frame.rect(0.0, length, y + sill, y + lintel, glass)
        for _ in range(3 if frame.z < 45.0 else 0):  # blinds, reflections, lit rooms
            u, low = int(scene.random() * count) * pitch, y + scene.uniform(sill, lintel - 0.2)
            pane = AMBER if scene.mood.lamps else scene.pick(panes)
            frame.rect(u, u + pitch, low, y + lintel, pane)
    width, ys = pier * pitch, (floors.start * storey + 0.3, floors.stop * storey + 0.25)
    frame.row((0.5 * width, length - 0.5 * width), count, width, ys, colour)


def _plot(scene: Scene, side: float, z: float, length: float, label: int) -> None:
    """Open ground with trees, perhaps a house set back; a wall, fence or hedge along it, or none."""
    x, leaf = side * scene.facade, scene.paint(LEAVES)
    scene.ground(x, x + 40.0 * side, z, z + length, TERRAIN, scene.paint(GRASS))
    if label != TERRAIN and scene.chance(0.5):
        _building(scene, side, z + 1.0, length - 2.0, scene.uniform(5.0, 9.0))
    for _ in scene.several(2 if label != TERRAIN else 5):
        _tree(scene, x + side * scene.uniform(2.0, 6.0), z + scene.uniform(0.3, 0.9) * length)
    frame, ends = Frame(scene, x, z, label, 0.0, 1.0), (0.1, length - 0.1)
    if label == WALL:
        colour, height = scene.paint(FACADES), scene.uniform(1.7, 3.2)
        frame.rect(0.0, length, 0.0, height, colour)
        for course in range(int(height / 0.4) if scene.chance(0.6) else 0):
            frame.rect(0.0, length, 0.4 * course, 0.4 * course + 0.06, scale(colour, 0.8))
        if scene.chance(0.5):
            frame.row(ends, int(length / 3.0), 0.35, (0.0, height + 0.1), scale(colour, 1.12))
        frame.rect(0.0, length, height - 0.15, height, scale(colour, 1.2))
    elif label == FENCE:
        colour, height, boards = scene.paint(TIMBER), scene.uniform(1.2, 2.2), scene.chance(0.4)
        frame.rect(0.0, length, 0.0, height - 0.1, colour if boards else scale(leaf, 0.8))
        count, width = int(2.6 * length) if z < 45.0 else int(length), 0.05 if boards else 0.13
        frame.row(ends, count, width, (0.0, height), scale(colour, 0.6) if boards else colour)
        for y in (0.25, height - 0.3):
            frame.rect(0.0, length, y, y + 0.12, scale(colour, 1.1))
        frame.row(ends, int(length / 2.5), 0.17, (0.0, height + 0.15), scale(colour, 0.85))
    elif label == VEGETATION:
        height = scene.uniform(1.0, 2.4)
        frame.rect(0.0, length, 0.0, height, leaf)
        for u in range(int(length)):  # an uneven top
            frame.disc(u + scene.random(), height - 0.1, scene.uniform(0.2, 0.45), leaf)


# What lines a street, by the class that one sees of it; ROAD is a side street.
QUARTERS = (
    (BUILDING, BUILDING, BUILDING, BUILDING, ROAD),
    (BUILDING, BUILDING, WALL, BUILDING, FENCE, TERRAIN, VEGETATION),
    (VEGETATION, FENCE, BUILDING, TERRAIN, WALL, BUILDING),
)


def _sides(scene: Scene, due: int) -> None:
    """Both sides of the street; a wall or fence that is due comes first into view."""
    chosen = scene.pick((-1.0, 1.0)) if due in (WALL, FENCE) else 0.0
    for side in (-1.0, 1.0):
        quarter, stretches = scene.pick(QUARTERS), []
        x, z = side * scene.facade, scene.in_view(side * scene.facade)
        if scene.crossing and not scene.zebra:  # the tram's way, behind a square
            z = scene.crossing + 4.5
            scene.ground(x, x + 40.0 * side, scene.near, z, SIDEWALK, scene.paint(PAVING))
            stretches.append((ROAD, z - 5.5, 5.5))
        elif side != chosen:
            z *= scene.uniform(0.5, 0.9)
        if side == chosen:
            stretches.append((due, z, scene.uniform(11.0, 18.0)))
            z += stretches[-1][2]
        while z < FAR:
            stretches.append((scene.pick(quarter), z, scene.uniform(7.0, 17.0)))
            z += stretches[-1][2]
        for label, start, length in reversed(stretches):
            if label == ROAD:
                grey, end, far = scene.uniform(76.0, 124.0), start + length, x + 40.0 * side
                scene.ground(x, far, start, end, SIDEWALK, scene.paint(PAVING))
                scene.ground(side * scene.kerb, far, start + 1.0, end - 1.0, ROAD, (grey,) * 3)
            elif label == BUILDING:
                _building(scene, side, start, length)
            else:
                _plot(scene, side, start, length, label)


# Vehicles: (x, z) is the middle, (dx, dz) the way they face, u = 0 the middle and u > 0 ahead.


def _car(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    frame, colour, glass = Frame(scene, x, z, CAR, dx, dz), scene.paint(PAINTS), scene.paint(PANES)
    tall, half, w = scene.uniform(1.38, 1.75), scene.uniform(1.9, 2.3), scene.uniform(0.84, 0.95)
    deck, rear = 0.62 * tall, scene.pick((0.98, 0.85, 0.85))  # an estate or not
    frame.footprint(2.0 * half + 0.2, 2.0 * w + 0.3, 0.25)
    u, v, beside = frame.box(-half, half, w, 0.22, deck, colour)
    frame.span(-half, w, deck, half, w, deck, scale(colour, 1.15))
    back, top_back, front, top_front = -rear * half, -(rear - 0.2) * half, 0.45 * half, 0.1 * half
    low, high = (front, top_front) if u > 0.0 else (back, top_back)
    frame.span(top_back, 0.9 * w, tall, top_front, 0.9 * w, tall, scale(colour, 1.1))
    if beside:
        frame.wheels((-0.62 * half, 0.62 * half), 0.33, v)
        frame.poly(colour, back, deck, front, deck, top_front, tall, top_back, tall, v=0.9 * v)
        sill, top = (0.88 * back, deck + 0.04, 0.8 * front, deck + 0.04), tall - 0.09
        frame.poly(glass, *sill, 0.7 * top_front, top, 0.95 * top_back, top, v=0.9 * v)
        frame.rect(-0.2 * half, -0.15 * half, 0.35, tall, scale(colour, 0.8), 0.95 * v)
    frame.span(low, 0.9 * w, deck, high, 0.9 * w, tall, scale(colour, 0.95))
    frame.span(low, 0.84 * w, deck + 0.04, high, 0.8 * w, tall - 0.08, glass)
    frame.span(u, w, 0.22, u, w, 0.4, scale(colour, 0.55))
    frame.lamps(u, w, 0.76 * deck)
    frame.twins(u, 0.62 * w, 0.82 * w, 0.0, 0.24, BLACK)
    frame.span(u, 0.28, 0.46, u, 0.28, 0.6, WHITE)


def _coach(scene: Scene, x: float, z: float, dx: float, dz: float, label: int) -> None:
    """A bus, or a tram on its rails."""
    tram, w, high = label == TRAIN, 1.28, scene.uniform(2.9, 3.4)
    half = scene.uniform(9.0, 14.0) if tram else scene.uniform(4.5, 6.0)
    frame, colour = Frame(scene, x, z, label, dx, dz), scene.paint(PAINTS)
    second = scene.paint((WHITE, STEEL, AMBER)) if tram else colour
    frame.footprint(2.0 * half, 2.9, 0.5)
    if tram:  # the current collector
        frame.rect(-0.3 * half, 0.3 * half, high, high + 0.35, STEEL)
        frame.poly(BLACK, 0.0, high, 0.9, high + 0.8, 0.0, high + 1.5, 0.7, high + 0.8)
    u, v, beside = frame.box(-half, half, w, 0.15 if tram else 0.3, high, colour)
    if beside:
        frame.rect(-half, half, 1.2, high, scale(second, 0.9), v)
        frame.rect(0.2 - half, half - 0.2, 1.35, high - 0.6, GLASS, v)
        pillar = (0.16, (1.35, high - 0.6), scale(second, 0.9), v)
        frame.row((-half, half), 12 if tram else 6, *pillar)
        door = (1.2, (0.4, high - 0.6), STEEL, v)
        frame.row((-0.6 * half, 0.6 * half), 3 if tram else 1, *door)
        frame.rect(-half, half, 0.75, 0.92, mix(colour, WHITE, 0.6), v)
        if tram:
            frame.row((-half / 3.0, half / 3.0), 1, 0.7, (0.2, high), BLACK, v)  # gangways
        else:
            frame.wheels((-0.55 * half, 0.75 * half), 0.48, v)
    frame.span(u, w, 1.2, u, w, high, second)
    frame.span(u, 1.15, 1.25, u, 1.15 - 0.15 * tram, high - 0.6, GLASS)
    frame.span(u, 0.9, high - 0.5, u, 0.9, high - 0.12, BLACK)
    frame.span(u, 0.5, high - 0.42, u, 0.5, high - 0.2, AMBER)
    frame.lamps(u, w, 0.8)
    frame.twins(u, 0.0 if tram else 0.9, 1.2, 0.0, 0.3, BLACK)


def _truck(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    frame, half = Frame(scene, x, z, TRUCK, dx, dz), scene.uniform(3.4, 4.8)
    colour, cab = scene.paint(PAINTS), scene.uniform(2.4, 2.9)
    cargo, high = scene.paint(PAINTS), scene.uniform(2.9, 3.7)
    frame.footprint(2.0 * half, 2.8, 0.5)
    frame.rect(-half, half, 0.45, 0.9, BLACK, math.copysign(0.9, frame.eye_v))
    for part in ("cargo", "cab") if frame.eye_u > half - 2.0 else ("cab", "cargo"):
        if part == "cargo":
            u, v, beside = frame.box(-half, half - 2.1, 1.25, 0.85, high, cargo)
            if beside:
                frame.rect(-0.7 * half, 0.2 * half, 1.6, high - 0.7, scene.paint(PAINTS), v)
                frame.wheels((-0.75 * half, -0.45 * half), 0.5, v)
            frame.span(u, 0.03, 0.95, u, 0.03, high - 0.1, scale(cargo, 0.6))
        else:
            u, v, beside = frame.box(half - 1.9, half, 1.15, 0.45, cab, colour)
            if beside:
                frame.rect(half - 1.2, half - 0.25, 1.5, cab - 0.3, GLASS, v)
                frame.wheels((half - 1.0,), 0.5, v)
            frame.span(u, 1.05, 1.45, u, 1.05, cab - 0.25, GLASS)
            frame.span(u, 0.8, 0.75, u, 0.8, 1.2, scale(colour, 0.6))
    frame.lamps(u, 1.2, 0.68)
    frame.twins(u, 0.8, 1.15, 0.0, 0.5, BLACK)


def _bicycle(scene: Scene, x: float, z: float, dx: float, dz: float, ridden: bool = True) -> None:
    frame, colour = Frame(scene, x, z, BICYCLE, dx, dz), scene.paint(PAINTS)
    frame.footprint(1.8, 0.6, 0.2)
    frame.wheels((-0.56, 0.56), 0.37, 0.0, 0.78)
    for u in (-0.56, 0.56):
        frame.span(u, 0.03, 0.0, u, 0.03, 0.74, BLACK)
    joints = ((-0.56, 0.37), (-0.2, 0.82), (0.36, 0.84), (-0.02, 0.3), (-0.2, 0.82))
    for (u0, y0), (u1, y1) in itertools.pairwise(joints):
        frame.poly(colour, u0, y0 - 0.04, u1, y1 - 0.04, u1, y1 + 0.05, u0, y0 + 0.05)
    frame.poly(colour, 0.5, 0.37, 0.62, 0.37, 0.42, 1.0, 0.3, 1.0)
    frame.rect(-0.32, -0.06, 0.88, 0.98, BLACK)
    frame.span(0.35, 0.28, 0.98, 0.35, 0.28, 1.06, BLACK)
    if ridden:
        _rider(scene, frame, scene.chance(0.4))


def _motorcycle(
    scene: Scene, x: float, z: float, dx: float, dz: float, ridden: bool = True
) -> None:
    frame, colour = Frame(scene, x, z, MOTORCYCLE, dx, dz), scene.paint(PAINTS)
    frame.footprint(2.2, 0.9, 0.2)
    frame.wheels((-0.75, 0.75), 0.38, 0.0)
    frame.poly(colour, -1.0, 0.85, -0.5, 0.35, 0.5, 0.35, 0.8, 1.0, 0.25, 1.05, -0.2, 0.8)
    frame.rect(-0.45, 0.4, 0.25, 0.6, STEEL)
    frame.poly(BLACK, -1.05, 0.85, -0.15, 0.78, -0.15, 0.9, -1.05, 1.0)
    ahead = frame.eye_u > 0.0
    for u in (-0.8, 0.55) if ahead else (0.55, -0.8):
        frame.span(u, 0.1, 0.0, u, 0.1, 0.76, BLACK)
        frame.span(u, 0.24, 0.42, u, 0.3, 1.05, colour)
    frame.span(0.5, 0.44, 1.02, 0.5, 0.44, 1.12, BLACK)
    frame.twins(0.5, 0.24, 0.38, 1.14, 1.26, BLACK)  # mirrors
    lamp = 0.75 if ahead else -1.0
    frame.span(lamp, 0.13, 0.74, lamp, 0.13, 0.96, WHITE if ahead else RED)
    if ridden:
        _rider(scene, frame, True)


def _rider(scene: Scene, seat: Frame, helmet: bool) -> None:
    frame = Frame(scene, seat.x, seat.z, RIDER, seat.dx, seat.dz)
    coat, legs, skin = scene.paint(CLOTHES), scene.paint(CLOTHES), scene.paint(SKINS)
    for v in (-0.16, 0.16):
        frame.poly(legs, -0.3, 0.85, 0.05, 0.95, 0.2, 0.75, 0.08, 0.2, -0.06, 0.2, 0.0, 0.68, v=v)
    frame.twins(0.05, 0.06, 0.26, 0.25, 0.95, legs)
    frame.poly(coat, -0.38, 0.88, -0.02, 0.88, 0.26, 1.35, 0.14, 1.55, -0.12, 1.5)
    frame.poly(scale(coat, 0.85), 0.1, 1.4, 0.2, 1.3, 0.5, 1.02, 0.42, 1.0)
    frame.span(0.0, 0.2, 0.86, 0.05, 0.3, 1.35, coat)
    frame.span(0.05, 0.3, 1.35, 0.05, 0.2, 1.55, coat)
    head = Frame(scene, seat.x + 0.14 * seat.dx, seat.z + 0.14 * seat.dz, RIDER)
    head.disc(0.0, 1.68, 0.17, scene.paint(PAINTS if helmet else HAIR))
    head.rect(-0.1, 0.1, 1.57, 1.68, scene.pick((skin, BLACK)) if helmet else skin)


# People, plants, furniture.


def _person(scene: Scene, x: float, z: float) -> None:
    frame = Frame(scene, x, z, PERSON)
    k = scene.uniform(0.62, 0.85) if scene.chance(0.12) else scene.uniform(0.92, 1.08)
    coat, legs, hem = scene.paint(CLOTHES), scene.paint(CLOTHES), scene.uniform(0.6, 0.95)
    stride, swing = scene.uniform(0.04, 0.3), scene.uniform(-0.12, 0.16)
    frame.footprint(0.6, 0.45, 0.3)

    def part(colour: Colour, *uy: float) -> None:
        frame.poly(colour, *(k * value for value in uy))

    for foot, light in ((-stride, 0.85), (stride, 1.0)):
        knee, shin = (0.4 * foot - 0.05, 0.5), (foot - 0.07, 0.0, foot + 0.1, 0.0)
        part(scale(legs, light), -0.13, 0.92, *knee, *shin, knee[0] + 0.16, 0.5, 0.13, 0.92)
    for u in (-0.26, 0.18):
        part(scale(coat, 0.82), u, 1.42, u + 0.09, 1.42, u + swing + 0.09, 0.85, u + swing, 0.85)
    part(coat, -0.19, hem, 0.19, hem, 0.23, 1.4, 0.1, 1.5, -0.1, 1.5, -0.23, 1.4)
    frame.disc(0.0, 1.64 * k, 0.135 * k, scene.paint(HAIR))
    if scene.chance(0.6):  # facing us
        frame.disc(0.0, 1.61 * k, 0.1 * k, scene.paint(SKINS))
    if scene.chance(0.3):
        frame.rect(0.16 * k, 0.36 * k, 0.6 * k, 0.95 * k, scene.paint(PAINTS))


def _tree(scene: Scene, x: float, z: float, height: float | None = None) -> None:
    """A tree, or a bush if its height says so."""
    height = height or scene.uniform(4.5, 9.0)
    frame, leaf, crown = Frame(scene, x, z, VEGETATION), scene.paint(LEAVES), 0.29 * height
    middle, away, light = height - crown, x - 0.5 * scene.sun * height, 0.62
    scene.shadow([(away + crown * c, z + crown * s) for c, s in CIRCLE], 0.5 * scene.mood.sun)
    if height > 3.0:
        frame.poly(scene.paint(BARK), -0.2, 0.0, 0.2, 0.0, 0.1, middle, -0.1, middle)
    else:
        middle, crown = 0.5 * height, 0.5 * height
    for _ in range(11 if z < 40.0 else 6):  # dark leaves first, sunlit ones last
        u, y = scene.uniform(-0.7, 0.7) + scene.sun * (light - 0.6), scene.uniform(-0.7, 0.8)
        radius = scene.uniform(0.32, 0.6) * crown
        frame.disc(u * crown, middle + y * crown, radius, scale(leaf, light))
        light += 0.06


def _lamp(scene: Scene, x: float, z: float) -> None:
    frame, colour, y = Frame(scene, x, z, POLE), scene.paint(TIMBER), scene.uniform(5.0, 7.5)
    arm = math.copysign(1.6, -x)
    frame.poly(colour, -0.1, 0.0, 0.1, 0.0, 0.07, y, -0.07, y)
    frame.poly(colour, 0.0, y - 0.3, 0.0, y, arm, y + 0.3, arm, y + 0.15)
    bulb = AMBER if scene.mood.lamps else scale(colour, 1.2)
    frame.rect(0.6 * arm, arm, y + 0.05, y + 0.3, bulb)


def _signal(scene: Scene, x: float, z: float) -> None:
    """A traffic light; some carry a second one on an arm over the road."""
    pole, light = Frame(scene, x, z, POLE), Frame(scene, x, z, LIGHT)
    colour, case = scene.paint(TIMBER), scene.pick((BLACK, GLASS, STEEL, AMBER))
    lit = scene.pick((0, 1, 2, 3))  # 3: none
    heads, arm = [(0.0, scene.uniform(2.3, 2.8))], math.copysign(scene.uniform(2.0, 3.2), -x)
    if scene.chance(0.5):
        heads.append((arm, 4.3))
        pole.rect(arm, 0.0, 5.3, 5.46, colour)
    pole.rect(-0.1, 0.1, 0.0, 5.5 if len(heads) > 1 else 3.4, colour)
    for u, y in heads:
        light.rect(u - 0.27, u + 0.27, y, y + 1.25, scale(case, 0.7))
        for i, lamp in enumerate((GREEN, AMBER, RED)):
            light.disc(u, y + 0.25 + 0.38 * i, 0.16, scale(lamp, 1.2 if i == lit else 0.25))


def _sign(scene: Scene, x: float, z: float) -> None:
    """A round, square or pointed sign on its pole, or a board on two."""
    pole, sign, y = Frame(scene, x, z, POLE), Frame(scene, x, z, SIGN), scene.uniform(2.5, 3.0)
    ink, shape = scene.paint(PLATES), scene.pick(("disc", "square", "peak", "diamond", "board"))
    if shape == "board":
        pole.row((-0.9, 0.9), 1, 0.13, (0.0, y), STEEL)
        sign.rect(-1.2, 1.2, y - 0.4, y + 0.9, ink)
        for line in (-0.2, 0.15, 0.5):
            sign.rect(-1.0, scene.uniform(0.1, 0.9), y + line, y + line + 0.15, WHITE)
        return
    pole.rect(-0.06, 0.06, 0.0, y, STEEL)
    for r, paint in ((0.5, ink), (0.34, WHITE), (0.14, scene.pick((ink, BLACK, WHITE)))):
        if shape == "disc":
            sign.disc(0.0, y, r, paint)
        elif shape == "square":
            sign.rect(-r, r, y - r, y + r, paint)
        elif shape == "peak":
            sign.poly(paint, -r, y - 0.7 * r, r, y - 0.7 * r, 0.0, y + r)
        else:
            sign.poly(paint, -r, y, 0.0, y - r, r, y, 0.0, y + r)


def _litter_bin(scene: Scene, x: float, z: float) -> None:
    frame, colour = Frame(scene, x, z, VOID), scene.paint(PAINTS)
    frame.footprint(0.7, 0.6, 0.2)
    frame.rect(-0.3, 0.3, 0.05, 0.95, colour)
    frame.rect(-0.34, 0.34, 0.85, 1.0, scale(colour, 0.7))


def _bench(scene: Scene, x: float, z: float) -> None:
    frame, colour = Frame(scene, x, z, VOID, 0.0, 1.0), scene.paint(TIMBER)
    v = math.copysign(0.4, x)
    frame.footprint(1.8, 0.6, 0.2)
    frame.row((-0.8, 0.8), 1, 0.1, (0.0, 0.45), BLACK)
    frame.rect(-0.9, 0.9, 0.55, 0.95, scale(colour, 0.8), v)
    frame.face(((-0.9, 0.0, 0.45), (0.9, 0.0, 0.45), (0.9, v, 0.45), (-0.9, v, 0.45)), colour)


def _bonnet(scene: Scene) -> None:
    """The camera's own car, at the lower edge."""
    height, width = scene.size
    colour, rise = scene.paint(PAINTS), height * scene.uniform(0.03, 0.07)
    for k, light in ((1.0, 0.8), (0.75, 1.0), (0.4, 0.9)):
        arc = [(int(width * (0.5 + 0.54 * c)), int(height - k * rise * s)) for c, s in ARC]
        outline = [*arc, (0, height), (width, height)]
        scene.draw.polygon(outline, fill=scene.tone(scale(colour, light), 0.0, VOID))


# The whole scene.

# What drives in a lane, and how long it can be (metres).
LANE_USERS: dict[int, tuple[Painter, float]] = {
    CAR: (_car, 4.6),
    BUS: (functools.partial(_coach, label=BUS), 12.0),
    TRAIN: (functools.partial(_coach, label=TRAIN), 28.0),
    TRUCK: (_truck, 9.6),
    MOTORCYCLE: (_motorcycle, 2.4),
}


def _cross(scene: Scene, vehicle: int, furniture: int) -> None:
    """A tram across the road, or people on a zebra crossing, or neither."""
    if vehicle == TRAIN and furniture not in (WALL, FENCE) and scene.chance(0.6):
        z = scene.crossing = scene.uniform(16.0, 24.0)
        x, dx = scene.eye_x + scene.uniform(-9.0, 9.0), scene.pick((-1.0, 1.0))
        scene.add(_coach, x, z + 1.5, dx, 0.0, TRAIN, lane=scene.eye_x)
        scene.rails += [(-60.0, 60.0, z + rail, z + rail + 0.12) for rail in (0.8, 2.2)]
    elif furniture == LIGHT or scene.chance(0.25):
        scene.crossing, scene.zebra = scene.uniform(7.0, 13.0), True
        for _ in scene.several(3):
            x, z = scene.uniform(-scene.kerb, scene.kerb), scene.crossing + scene.uniform(0.3, 2.7)
            scene.add(_person, x, z, lane=scene.eye_x)


def _traffic(scene: Scene, vehicle: int, furniture: int) -> None:
    """Both lanes, the bicycles beside them, and the parking lanes."""
    start = max(scene.near + 4.0, scene.crossing + 4.0, 7.0)
    oncoming = scene.chance(0.6)
    for ahead in (1.0, -1.0):
        side = ahead * scene.drive
        x, z = side * 0.5 * scene.half, start + scene.uniform(0.0, 4.0)
        busy, parked = scene.uniform(0.2, 0.9), scene.uniform(0.2, 0.95)
        due = oncoming == (ahead < 0.0) and not scene.rails
        if due and vehicle == TRAIN:
            scene.rails += [(x + r, x + r + 0.07, scene.near, FAR) for r in (-0.75, 0.68)]
        while z < 80.0:
            kind = scene.pick((BUS, TRUCK, MOTORCYCLE)) if scene.chance(0.14) else CAR
            paint, length = LANE_USERS[vehicle if due else kind]
            if due or scene.chance(busy):
                scene.add(paint, x, z + 0.5 * length, 0.0, ahead)
            due = False
            z += length + scene.uniform(3.0, 14.0)
        if furniture == BICYCLE or scene.chance(0.3):
            z = start + scene.uniform(0.0, 10.0)
            scene.add(_bicycle, side * (scene.half - 0.3), z, *_heading(scene, ahead))
        if scene.kerb - scene.half > 1.0:
            z = scene.near + scene.uniform(3.0, 8.0)
            while z < 70.0:
                if abs(z - scene.crossing - 1.5) > 4.0 and scene.chance(parked):
                    scene.add(_car, side * (scene.kerb - 1.1), z, 0.0, ahead)
                z += scene.uniform(5.2, 7.0)


def _kerbside(scene: Scene, side: float, vehicle: int, furniture: int) -> None:
    """What stands and walks between a kerb and its facades."""
    post, inner = side * (scene.kerb + 0.5), scene.kerb + scene.verge + 0.5
    seen = scene.in_view(post)

    def spread(paint: Painter, x: float, near: float, pitch: float) -> None:
        z = scene.in_view(x) + near
        while z < 95.0:
            scene.add(paint, x, z)
            z += pitch * scene.uniform(0.8, 1.3)

    def spot(nearest: float, farthest: float) -> Pair:
        x = side * scene.uniform(inner, scene.facade - 0.5)
        return x, 1.1 * scene.in_view(x) + scene.uniform(nearest, farthest)

    spread(_lamp, post, scene.uniform(-1.0, 6.0), scene.uniform(16.0, 30.0))
    if scene.chance(0.5):  # an avenue
        spread(_tree, 1.1 * post, scene.uniform(2.0, 9.0), scene.uniform(8.0, 14.0))
    if furniture == LIGHT or scene.chance(0.2):
        z = seen + scene.uniform(1.0, 8.0)
        scene.add(_signal, post, max(scene.crossing - 0.3, 1.1 * seen) if scene.zebra else z)
    if furniture == LIGHT or scene.chance(0.5):
        scene.add(_sign, post, seen + scene.uniform(2.0, 12.0))
    for _ in scene.several(2):
        scene.add(_sign, post, seen + scene.uniform(8.0, 45.0))
    for _ in scene.several(6):
        scene.add(_person, *spot(0.0, 40.0 * scene.random()))
    if furniture == BICYCLE or scene.chance(0.25):
        x, z = spot(0.5, 3.0)
        scene.add(_bicycle, x, z, *_heading(scene, 1.0), scene.chance(0.7))
        for parked in scene.several(3):
            scene.add(_bicycle, x, z + 3.0 + 0.8 * parked, 0.96, 0.28, False)
    if vehicle == MOTORCYCLE or scene.chance(0.2):
        scene.add(_motorcycle, *spot(0.5, 6.0), *_heading(scene, 1.0), scene.chance(0.3))
    for thing in (_litter_bin, _bench):
        if scene.chance(0.3):
            scene.add(thing, *spot(1.0, 15.0))
    for _ in scene.several(4 if scene.verge else 0):
        x, height = side * (scene.kerb + 0.5 * scene.verge), scene.uniform(0.6, 1.4)
        scene.add(_tree, x, seen + scene.uniform(0.0, 30.0), height)


def _heading(scene: Scene, ahead: float) -> tuple[float, float]:
    """A direction roughly along the street."""
    dx, dz = scene.pick(HEADINGS)
    return dx, ahead * dz


# By how much grain and leaves vary the brightness of a class, as a share; (0.05, 0.03) for all others.
TEXTURE = {
    ROAD: (0.12, 0.05), SIDEWALK: (0.1, 0.06), TERRAIN: (0.22, 0.25), VEGETATION: (0.25, 0.45),
    BUILDING: (0.06, 0.07), WALL: (0.09, 0.1), FENCE: (0.09, 0.12), SKY: (0.0, 0.0),
}  # fmt: skip
GROUND = (ROAD, SIDEWALK, TERRAIN)


def _expose(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Takes the picture: texture, shadows on the ground, light, lens and sensor noise."""
    (height, width), (grain, leaves, clouds) = scene.size, textures()
    *channels, label = scene.image.split()

    def per_class(values: list[float]) -> np.ndarray:
        return np.asarray(label.point([int(k) for k in values]))

    gain = 1.0 + window(scene, clouds, height, scene.uniform(0.0, 0.12))
    rough = scene.uniform(0.006, 0.014)
    for i, texture in enumerate((grain, leaves)):
        percent = per_class([100.0 * TEXTURE.get(k, (0.05, 0.03))[i] for k in range(256)])
        gain += window(scene, texture, height, rough) * percent
    shade = np.asarray(scene.shade.resize((width, height), Image.Resampling.BILINEAR))
    lit = np.maximum(shade, per_class([255.0 * (k not in GROUND) for k in range(256)]))
    gain *= lit * np.float32(1.0 / 255.0)
    exposure, noise = scene.uniform(0.85, 1.2), scene.uniform(1.0, 6.0)
    blur = np.float32(scene.uniform(0.05, 0.2))
    image = np.empty((height, width, 3), np.uint8)
    for i, channel in enumerate(channels):
        plane = np.asarray(channel) * gain
        plane[:, 1:-1] += blur * (plane[:, :-2] + plane[:, 2:] - 2.0 * plane[:, 1:-1])
        plane[1:-1] += blur * (plane[:-2] + plane[2:] - 2.0 * plane[1:-1])
        plane *= np.float32(exposure * scene.mood.light[i] * scene.uniform(0.97, 1.03))
        plane += window(scene, grain, height, noise)
        image[..., i] = plane.clip(0.0, 255.0)
    return image, np.array(label)


def render(
    seed: int, index: int, size: tuple[int, int] = (256, 512)
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Renders one street frame; a pure function of its arguments.

    Args:
        seed: The data set, 0 or more.
        index: The frame in it, 0 or more; 16 frames in a row hold all 19 classes, bar chance.
        size: (h, w) in pixels, each at least 32.

    Returns:
        The RGB image, and its label in Cityscapes train ids 0-18 with 255 = void.

    Raises:
        ValueError: a number out of its range.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must both be 0 or more")
    if min(size) < MIN_SIZE:
        raise ValueError(f"size {size} is too small; give (h, w) of at least {MIN_SIZE} each")
    scene = Scene(np.random.default_rng([seed, index]), size)
    vehicle, furniture = VEHICLES[index % 4], FURNITURE[(index + index // 4) % 4]
    _cross(scene, vehicle, furniture)
    _traffic(scene, vehicle, furniture)
    for side in (-1.0, 1.0):
        _kerbside(scene, side, vehicle, furniture)
    _backdrop(scene)
    _ground(scene)
    _sides(scene, furniture)
    for _, paint in sorted(scene.queue, key=lambda task: task[0]):
        paint()
    if scene.chance(0.3):
        _bonnet(scene)
    return _expose(scene)
