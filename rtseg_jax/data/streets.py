"""Procedural street scenes with exact labels: the dataset that needs no download.

A scene is built in metres (x to the right of the road's centre line, y up, z ahead of the camera) and painted
from far to near. The canvas is RGBA with the Cityscapes train id in the alpha channel, so one call draws a
shape into the image and into the label, and the two cannot disagree. Light, texture and sensor noise are then
put on the colours alone.

To add an object, write `_thing(scene, x, z)`, draw it in a `Frame`, and `scene.add` it in `_populate`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
VOID = 255

Colour = tuple[int, int, int]
Point = tuple[float, float, float]

MIN_SIZE = 32
FAR = 120.0  # metres; the street ends here
# One vehicle and one piece of street furniture are certain in every frame; any 16 frames in a row hold all pairs.
VEHICLES = ("train", "motorcycle", "bus", "truck")
FURNITURE = ("wall", "signals", "fence", "bicycle")
# Unit vectors from Pythagorean triples: exact on every platform, unlike sin and cos.
HEADINGS = ((0.0, 1.0), (0.28, 0.96), (-0.28, 0.96), (0.6, 0.8), (-0.6, 0.8), (0.0, -1.0), (0.28, -0.96))
CIRCLE = tuple((round(math.cos(i * math.pi / 6), 3), round(math.sin(i * math.pi / 6), 3)) for i in range(12))

FACADES = ((158, 88, 70), (206, 194, 170), (178, 178, 174), (122, 120, 122), (216, 196, 148), (98, 90, 86),
           (172, 140, 110), (204, 172, 160), (118, 132, 146), (190, 120, 84), (226, 222, 214), (140, 110, 96))
ROOFS = ((150, 74, 56), (110, 64, 54), (86, 84, 90), (70, 62, 60), (128, 96, 80))
PAINTS = ((232, 232, 230), (24, 25, 28), (168, 170, 174), (104, 106, 110), (150, 26, 30), (28, 52, 110),
          (60, 84, 66), (196, 168, 60), (118, 92, 70), (64, 120, 170), (200, 90, 40))
CLOTHES = ((30, 32, 40), (70, 74, 90), (150, 40, 44), (40, 70, 130), (200, 196, 188), (88, 100, 70),
           (190, 150, 60), (110, 70, 110), (60, 130, 140), (96, 72, 56))
SKINS = ((232, 190, 164), (198, 148, 118), (140, 96, 72), (88, 60, 48))
LEAVES = ((62, 92, 44), (84, 110, 52), (50, 82, 50), (104, 116, 56), (72, 96, 66), (150, 118, 48))
GRASS = ((96, 122, 62), (116, 126, 70), (84, 108, 60), (140, 132, 92))
PAVINGS = ((150, 146, 140), (126, 124, 124), (168, 150, 136), (140, 132, 130))
WOOD = ((122, 90, 62), (150, 128, 104), (92, 110, 84), (214, 210, 200), (96, 96, 98))


class Mood(NamedTuple):
    """Weather and time of day."""

    zenith: Colour
    horizon: Colour
    cloud: Colour
    light: tuple[float, float, float]  # gain per channel
    sun: float  # 0 = no cast shadows, 1 = hard ones
    clear: float  # metres after which half of a colour is haze
    lamps: bool


MOODS = (
    Mood((74, 124, 196), (190, 212, 232), (244, 246, 248), (1.06, 1.04, 1.0), 1.0, 220.0, False),  # noon
    Mood((96, 146, 206), (214, 222, 226), (236, 238, 240), (1.0, 1.0, 1.0), 0.7, 160.0, False),  # fair
    Mood((158, 166, 174), (206, 209, 211), (184, 188, 192), (0.9, 0.93, 0.96), 0.1, 120.0, False),  # overcast
    Mood((196, 200, 202), (216, 218, 218), (206, 208, 210), (0.95, 0.96, 0.97), 0.0, 42.0, False),  # mist
    Mood((112, 132, 178), (250, 204, 150), (252, 220, 190), (1.12, 0.97, 0.8), 0.9, 130.0, False),  # low sun
    Mood((58, 76, 130), (216, 156, 136), (150, 120, 140), (0.74, 0.71, 0.78), 0.0, 130.0, True),  # dusk
)


class Camera(NamedTuple):
    """A level pinhole camera above the road, looking along it. Lengths in metres, image quantities in pixels."""

    x: float
    height: float
    focal: float
    centre: float  # column of the vanishing point
    horizon: float  # row of the vanishing point
    near: float  # nothing is projected from nearer than this

    def project(self, x: float, y: float, z: float) -> tuple[int, int]:
        """Pixel (column, row) of a point."""
        scale = self.focal / max(z, self.near)
        return round(self.centre + (x - self.x) * scale), round(self.horizon + (self.height - y) * scale)


class Scene:
    """Canvas, camera, weather and chance of one frame, and the list of objects still to be painted."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        height, width = self.size = size
        self.random = rng.random
        self.mood = self.pick(MOODS)
        self.sun = self.pick((-1, 1))  # the side that the light comes from
        self.drive = self.pick((-1, 1, 1))  # 1 = right-hand traffic
        self.half = self.uniform(3.5, 5.0)  # centre line to edge line
        self.kerb = self.half + self.pick((0.3, 2.3, 2.3))  # with or without a parking lane
        self.verge = self.pick((0.0, 0.0, 1.2, 2.0))
        self.facade = self.kerb + self.verge + self.uniform(2.2, 4.5)
        focal = self.uniform(0.62, 0.85) * math.sqrt(2.0 * height * width)
        eye, horizon = self.uniform(1.35, 2.1), height * self.uniform(0.38, 0.5)
        near = eye * focal / (height - horizon + 2.0)
        self.camera = Camera(self.drive * self.half * self.uniform(0.2, 0.6), eye, focal,
                             width * self.uniform(0.4, 0.6), horizon, near)
        self.crossing = 0.0  # metres to whatever crosses the road; 0 = nothing
        self.zebra = False  # and whether that is people
        self.rails: list[tuple[float, float, float, float]] = []  # on the ground, x0, x1, z0, z1
        self.image = Image.fromarray(_sky(self, rng))
        self.draw = ImageDraw.Draw(self.image)
        # Light on the ground at half resolution: shadows come out soft, and cheap.
        self.shade = Image.new("L", ((width + 1) // 2, (height + 1) // 2), 255)
        self.shade_draw = ImageDraw.Draw(self.shade)
        self.objects: list[tuple[tuple[bool, float, float], Callable[[], None]]] = []

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def pick(self, options: Sequence):
        """One of the options."""
        return options[int(self.random() * len(options))]

    def paint(self, palette: Sequence[Colour], spread: float = 0.18) -> Colour:
        """A colour near one of the palette's."""
        r, g, b = self.pick(palette)
        k = self.uniform(1.0 - spread, 1.0 + spread)
        warm = self.uniform(-8.0, 8.0)
        return _rgb(r * k + warm, g * k, b * k - warm)

    def polygon(self, pixels: list[tuple[int, int]], z: float, label: int, colour: Colour) -> None:
        """Fills a polygon given in pixels, with the haze of its distance."""
        self.draw.polygon(pixels, fill=(*self.hazy(colour, z), label))

    def hazy(self, colour: Colour, z: float) -> Colour:
        """The colour as it arrives from z metres away."""
        return _mix(colour, self.mood.horizon, z / (z + self.mood.clear))

    def ground(self, x0: float, x1: float, z0: float, z1: float, label: int, colour: Colour) -> None:
        """Fills a rectangle on the ground; long ones in pieces, for the haze."""
        project = self.camera.project
        z0 = max(z0, self.camera.near)
        while z0 < z1:
            z2 = z1 if z1 < 2.0 * z0 else 1.6 * z0
            corners = [project(x0, 0.0, z0), project(x1, 0.0, z0), project(x1, 0.0, z2), project(x0, 0.0, z2)]
            self.polygon(corners, 0.5 * (z0 + z2), label, colour)
            z0 = z2

    def shadow(self, points: Sequence[tuple[float, float]], strength: float) -> None:
        """Darkens a polygon on the ground, given as (x, z) points; what stands there is not touched."""
        pixels = [self.camera.project(x, 0.0, z) for x, z in points]
        self.shade_draw.polygon([(x // 2, y // 2) for x, y in pixels], fill=int(255 * (1.0 - strength)))

    def in_view(self, x: float) -> float:
        """The distance from which on the line x is inside the picture."""
        aside = x - self.camera.x
        room = self.size[1] - self.camera.centre if aside > 0.0 else self.camera.centre
        return max(self.camera.focal * abs(aside) / room, self.camera.near)

    def add(self, paint: Callable[..., None], x: float, z: float, *options: object,
            lane: float | None = None) -> None:
        """Queues `paint(scene, x, z, *options)`.

        The order is exact for objects that keep to their lanes: beyond the crossing before this side of it, then
        outer lanes before inner ones (a ray from the camera meets the inner first), then far before near. `lane`
        is the middle of the lane where that is not x; the camera's own x suits what goes across all lanes.
        """
        key = (z < self.crossing, -abs((x if lane is None else lane) - self.camera.x), -z)
        self.objects.append((key, functools.partial(paint, self, x, z, *options)))


class Frame:
    """A place to draw in: an origin on the ground and a direction, in which u runs along, v to its right, y up."""

    def __init__(self, scene: Scene, x: float, z: float, dx: float = 1.0, dz: float = 0.0,
                 light: float = 1.0) -> None:
        self.scene, self.x, self.z, self.dx, self.dz, self.light = scene, x, z, dx, dz, light
        ahead, beside = -z, scene.camera.x - x
        self.eye = (beside * dx + ahead * dz, beside * dz - ahead * dx)  # the camera's (u, v)

    def face(self, points: Sequence[Point], label: int, colour: Colour, light: float = 1.0) -> None:
        """Fills a polygon of (u, v, y) points."""
        project, dx, dz = self.scene.camera.project, self.dx, self.dz
        pixels = [project(self.x + u * dx + v * dz, y, self.z + u * dz - v * dx) for u, v, y in points]
        (u0, v0, _), (u1, v1, _) = points[0], points[len(points) // 2]
        z = self.z + 0.5 * ((u0 + u1) * dz - (v0 + v1) * dx)
        self.scene.polygon(pixels, max(z, 0.0), label, _scale(colour, self.light * light))

    def rect(self, u0: float, u1: float, y0: float, y1: float, label: int, colour: Colour, v: float = 0.0) -> None:
        """Fills an upright rectangle along u."""
        self.face(((u0, v, y0), (u1, v, y0), (u1, v, y1), (u0, v, y1)), label, colour)

    def across(self, v0: float, v1: float, y0: float, y1: float, label: int, colour: Colour, u: float = 0.0) -> None:
        """Fills an upright rectangle along v."""
        self.face(((u, v0, y0), (u, v1, y0), (u, v1, y1), (u, v0, y1)), label, colour, 0.88)

    def poly(self, points: Sequence[tuple[float, float]], label: int, colour: Colour, v: float = 0.0) -> None:
        """Fills an upright polygon of (u, y) points."""
        self.face([(u, v, y) for u, y in points], label, colour)

    def disc(self, u: float, y: float, radius: float, label: int, colour: Colour, v: float = 0.0) -> None:
        """Fills an upright disc."""
        if self.dz:
            self.face([(u + radius * c, v, y + radius * s) for c, s in CIRCLE], label, colour)
            return
        left, top = self.scene.camera.project(self.x + u - radius, y + radius, self.z)
        right, bottom = self.scene.camera.project(self.x + u + radius, y - radius, self.z)
        fill = (*self.scene.hazy(_scale(colour, self.light), self.z), label)
        self.scene.draw.ellipse((left, top, right, bottom), fill=fill)

    def footprint(self, length: float, width: float, strength: float, lean: float = 0.0) -> None:
        """Puts a shadow under an object of the given size (metres), leaning away from the sun."""
        u, v, dx, dz = 0.5 * length, 0.5 * width, self.dx, self.dz
        lean *= -self.scene.sun
        points = [(self.x + a * dx + b * dz + lean, self.z + a * dz - b * dx)
                  for a, b in ((-u, -v), (u, -v), (u, v), (-u, v))]
        self.scene.shadow(points, strength)


def _rgb(r: float, g: float, b: float) -> Colour:
    return min(max(int(r), 0), 255), min(max(int(g), 0), 255), min(max(int(b), 0), 255)


def _scale(colour: Colour, gain: float) -> Colour:
    return _rgb(colour[0] * gain, colour[1] * gain, colour[2] * gain)


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return int(a[0] + (b[0] - a[0]) * t), int(a[1] + (b[1] - a[1]) * t), int(a[2] + (b[2] - a[2]) * t)


# ---------------------------------------------------------------------------------------- sky and ground


@functools.cache
def _noise() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three fixed textures, int8 [1024, 2048]: grain, leaves (a few pixels wide) and clouds (a hundred)."""
    rng = np.random.default_rng(19)
    size = (2048, 1024)

    def layer(cell: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (1024 // cell + 2, 2048 // cell + 2), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(np.int16) - 128

    grain = layer(1)
    leaves = (2 * layer(2) + 3 * layer(4) + 2 * layer(9)) // 6
    clouds = (8 * layer(160) + 4 * layer(72) + 2 * layer(30) + layer(12)) // 11
    return grain.astype(np.int8), leaves.clip(-128, 127).astype(np.int8), clouds.clip(-128, 127).astype(np.int8)


def _crop(noise: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random window of a texture, as float32; the texture repeats where the window is larger."""
    rows, columns = noise.shape
    y, x = int(rng.random() * rows), int(rng.random() * columns)
    if y + height > rows or x + width > columns:
        noise = np.tile(noise, ((y + height) // rows + 1, (x + width) // columns + 1))
    return noise[y:y + height, x:x + width].astype(np.float32)


def _sky(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The empty canvas, uint8 [h, w, 4]: sky with a gradient and clouds above the horizon, earth below."""
    (height, width), mood = scene.size, scene.mood
    rows = min(int(scene.camera.horizon) + 1, height)
    canvas = np.empty((height, width, 4), np.uint8)
    canvas[:rows, :, 3] = SKY
    canvas[rows:] = (*scene.hazy(scene.paint(GRASS), 40.0), TERRAIN)
    t = np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None]
    clouds = _crop(_noise()[2], rng, rows, width)
    clouds = np.clip((clouds + np.float32(scene.uniform(-45.0, 40.0))) / 60.0, 0.0, 1.0) * (0.95 - 0.5 * t)
    for channel in range(3):
        gradient = mood.zenith[channel] + (mood.horizon[channel] - mood.zenith[channel]) * t
        canvas[:rows, :, channel] = gradient + (mood.cloud[channel] - gradient) * clouds
    return canvas


def _backdrop(scene: Scene) -> None:
    """What closes the street: roofs and trees in the haze."""
    reach = FAR * scene.size[1] / scene.camera.focal
    x = scene.camera.x - reach
    while x < scene.camera.x + reach:
        width, frame = scene.uniform(6.0, 22.0), Frame(scene, x, FAR)
        if scene.chance(0.55):
            height = scene.uniform(5.0, 22.0)
            frame.rect(0.0, width, 0.0, height, BUILDING, scene.paint(FACADES))
            if scene.chance(0.4):
                roof = ((0.0, height), (width, height), (0.5 * width, height + 4.0))
                frame.poly(roof, BUILDING, scene.paint(ROOFS))
        else:
            for _ in range(4):
                u, radius = scene.uniform(0.0, width), scene.uniform(3.0, 6.0)
                frame.disc(u, scene.uniform(2.0, 5.0), radius, VEGETATION, scene.paint(LEAVES))
        x += width * scene.uniform(0.7, 1.0)


def _ground(scene: Scene) -> None:
    """Road, markings, kerbs, verges, pavements."""
    near, kerb, half = scene.camera.near, scene.kerb, scene.half
    grey = scene.uniform(72.0, 132.0)
    asphalt = _rgb(grey + scene.uniform(-6.0, 8.0), grey, grey + scene.uniform(-6.0, 10.0))
    paving = scene.paint(PAVINGS, 0.22)
    grass = scene.paint(GRASS)
    for side in (-1, 1):
        path = side * (kerb + scene.verge)
        scene.ground(side * kerb, path, near, FAR, TERRAIN, grass)
        scene.ground(path, side * scene.facade, near, FAR, SIDEWALK, paving)
        z = near + scene.random()
        while z < 30.0:  # joints between slabs
            scene.ground(path, side * scene.facade, z, z + 0.06, SIDEWALK, _scale(paving, 0.82))
            z += 0.8 + 0.08 * z
        scene.ground(side * kerb, side * (kerb + 0.22), near, FAR, SIDEWALK, _scale(paving, 1.15))
    scene.ground(-kerb, kerb, near, FAR, ROAD, asphalt)
    for side in (-1, 1):  # gutter, and the line along the parking lane
        scene.ground(side * kerb, side * (kerb - 0.2), near, FAR, ROAD, _scale(asphalt, 0.8))
    for _ in range(int(scene.uniform(0.0, 7.0))):  # repairs and covers
        x, z, k = scene.uniform(-half, half), scene.uniform(near, 30.0), scene.uniform(0.7, 1.2)
        scene.ground(x, x + scene.uniform(0.5, 2.5), z, z + scene.uniform(0.4, 6.0), ROAD, _scale(asphalt, k))
    white = _mix(asphalt, (236, 234, 226), scene.uniform(0.55, 1.0))
    if scene.chance(0.8):
        for side in (-1, 1):
            scene.ground(side * half, side * (half - 0.14), near, FAR, ROAD, white)
    z, gap = near + 6.0 * scene.random(), scene.pick((3.0, 4.5, 6.0, 0.0))
    while z < 90.0:
        scene.ground(-0.08, 0.08, z, z + 3.0, ROAD, white)
        z += 3.0 + gap
    for rail in scene.rails:
        scene.ground(*rail, ROAD, _scale(asphalt, 0.6))
    if scene.zebra:
        x = 0.3 - kerb
        while x < kerb - 0.6:
            scene.ground(x, x + 0.5, scene.crossing, scene.crossing + 3.0, ROAD, white)
            x += 1.0


# ------------------------------------------------------------------------------- the sides of the street
#
# Each fills one stretch (z to z + length) of one side (-1 left, 1 right). In the frames, u runs along the street
# and v * side is the distance outwards, so v = 0 is the line of the facades.


def _side_frame(scene: Scene, side: int, z: float, outwards: float = 0.0) -> Frame:
    light = 1.0 - 0.28 * scene.mood.sun * (side == scene.sun)
    return Frame(scene, side * (scene.facade + outwards), z, 0.0, 1.0, light)


def _building(scene: Scene, side: int, z: float, length: float, outwards: float = 0.0) -> None:
    frame = _side_frame(scene, side, z, outwards)
    colour, storey = scene.paint(FACADES), scene.uniform(2.9, 3.6)
    floors = scene.pick((1, 2, 2, 3, 3, 4, 5, 6))
    height, depth = floors * storey + 0.6, side * 9.0
    if scene.mood.sun and side == scene.sun:
        reach = scene.uniform(0.4, 0.9) * height
        x = side * (scene.facade + outwards)
        corners = ((x, z), (x - side * reach, z - 0.3 * reach), (x - side * reach, z + length), (x, z + length))
        scene.shadow(corners, 0.45 * scene.mood.sun)
    frame.across(0.0, depth, 0.0, height, BUILDING, _scale(colour, 0.92))
    if floors < 4 and scene.chance(0.6):
        roof, ridge = scene.paint(ROOFS), height + scene.uniform(1.8, 3.2)
        gable = ((0.0, 0.0, height), (0.0, depth, height), (0.0, 0.5 * depth, ridge))
        eaves = ((0.0, 0.0, height), (length, 0.0, height), (length, 0.5 * depth, ridge), gable[2])
        frame.face(gable, BUILDING, _scale(colour, 0.85))
        frame.face(eaves, BUILDING, roof)
    frame.rect(0.0, length, 0.0, height, BUILDING, colour)
    trim = _mix(colour, (240, 236, 228), scene.uniform(0.1, 0.6))
    frame.rect(0.0, length, height - 0.35, height, BUILDING, trim)
    shop = floors > 1 and scene.chance(0.45)
    _windows(scene, frame, length, storey, floors, 1 if shop else 0, colour, trim)
    if z < 50.0 and scene.chance(0.6):
        end = Frame(scene, frame.x, z, float(side), 0.0, 0.8 * frame.light)
        _windows(scene, end, 9.0, storey, floors, 0, _scale(colour, 0.95), trim)
    if shop:
        _shop(scene, frame, length, side)
    else:
        frame.rect(0.0, length, 0.0, 0.5, BUILDING, _scale(colour, 0.7))
        u = scene.uniform(0.2, 0.7) * length
        frame.rect(u - 0.15, u + 1.25, 0.0, 2.5, BUILDING, trim)
        frame.rect(u, u + 1.1, 0.1, 2.35, BUILDING, scene.paint(PAINTS))


def _windows(scene: Scene, frame: Frame, length: float, storey: float, floors: int, lowest: int,
             colour: Colour, trim: Colour) -> None:
    """Rows of windows: a band of glass for each floor, cut by piers, which is cheaper than one by one."""
    count = max(2, int(length / scene.uniform(1.9, 3.4)))
    pitch, share = length / count, scene.uniform(0.35, 0.7)
    glass = scene.paint(((52, 60, 72), (84, 100, 118), (36, 38, 44), (120, 136, 150)))
    bottom, top = scene.uniform(0.8, 1.1), storey - scene.uniform(0.4, 0.8)
    for floor in range(lowest, floors):
        base = floor * storey + 0.3
        frame.rect(0.0, length, base + bottom - 0.14, base + bottom, BUILDING, trim)
        frame.rect(0.0, length, base + bottom, base + top, BUILDING, glass)
        for _ in range(3):  # blinds, reflections, lit rooms
            u = int(scene.random() * count) * pitch
            pane = scene.pick(((206, 202, 190), (150, 170, 186), (40, 40, 44)))
            if scene.mood.lamps:
                pane = (255, 214, 140)
            frame.rect(u, u + pitch, base + scene.uniform(bottom, top - 0.2), base + top, BUILDING, pane)
    pier, wall = 0.5 * pitch * (1.0 - share), lowest * storey + 0.3
    for column in range(count + 1):
        u0, u1 = max(column * pitch - pier, 0.0), min(column * pitch + pier, length)
        frame.rect(u0, u1, wall, floors * storey + 0.25, BUILDING, colour)


def _shop(scene: Scene, frame: Frame, length: float, side: int) -> None:
    """A shop front: glass, door, fascia and sometimes an awning."""
    sign, glass = scene.paint(PAINTS), (255, 226, 170) if scene.mood.lamps else scene.paint(((70, 82, 92),))
    frame.rect(0.3, length - 0.3, 0.4, 2.6, BUILDING, glass)
    for _ in range(4):  # goods
        u = scene.uniform(0.5, length - 1.5)
        frame.rect(u, u + scene.uniform(0.4, 1.2), 0.5, scene.uniform(0.9, 1.9), BUILDING, scene.paint(CLOTHES))
    u = scene.uniform(0.3, 0.6) * length
    frame.rect(u, u + 1.2, 0.0, 2.5, BUILDING, scene.paint(WOOD))
    frame.rect(0.0, length, 2.6, 3.3, BUILDING, sign)
    frame.rect(0.2 * length, 0.7 * length, 2.8, 3.1, BUILDING, _mix(sign, (250, 248, 240), 0.8))
    if scene.chance(0.4):
        v = -1.1 * side
        awning = ((0.2, 0.0, 2.9), (length - 0.2, 0.0, 2.9), (length - 0.2, v, 2.35), (0.2, v, 2.35))
        frame.face(awning, BUILDING, scene.paint(PAINTS))


def _wall(scene: Scene, side: int, z: float, length: float) -> None:
    frame, height = _side_frame(scene, side, z), scene.uniform(1.7, 3.2)
    colour = scene.paint(FACADES)
    _behind(scene, side, z, length)
    frame.across(0.0, 0.4 * side, 0.0, height, WALL, colour)
    frame.rect(0.0, length, 0.0, height, WALL, colour)
    if scene.chance(0.6):
        y = 0.4
        while y < height - 0.3:  # courses
            frame.rect(0.0, length, y, y + 0.06, WALL, _scale(colour, 0.8))
            y += 0.4
    if scene.chance(0.5):
        for column in range(int(length / 3.0) + 1):
            frame.rect(3.0 * column, 3.0 * column + 0.35, 0.0, height + 0.1, WALL, _scale(colour, 1.12))
    frame.rect(0.0, length, height - 0.15, height, WALL, _scale(colour, 1.2))


def _fence(scene: Scene, side: int, z: float, length: float) -> None:
    frame, height = _side_frame(scene, side, z), scene.uniform(1.2, 2.2)
    colour, gap = scene.paint(WOOD), scene.paint(LEAVES, 0.3)
    _behind(scene, side, z, length)
    boards = scene.chance(0.4)
    frame.rect(0.0, length, 0.0 if boards else 0.1, height, FENCE, colour if boards else _scale(gap, 0.8))
    step = 0.35 if boards else scene.pick((0.3, 0.45))
    u = 0.0
    while u < length:
        if boards:
            frame.rect(u, u + 0.05, 0.0, height, FENCE, _scale(colour, 0.6))
        else:
            frame.rect(u, u + 0.12, 0.05, height + 0.05, FENCE, colour)
        u += step
    for y in (0.25, height - 0.3):
        frame.rect(0.0, length, y, y + 0.12, FENCE, _scale(colour, 1.1))
    for post in range(int(length / 2.5) + 1):
        frame.rect(2.5 * post, 2.5 * post + 0.16, 0.0, height + 0.15, FENCE, _scale(colour, 0.85))


def _hedge(scene: Scene, side: int, z: float, length: float) -> None:
    frame, height, leaf = _side_frame(scene, side, z), scene.uniform(1.0, 2.4), scene.paint(LEAVES)
    _behind(scene, side, z, length)
    frame.across(0.0, 1.2 * side, 0.0, height, VEGETATION, leaf)
    frame.rect(0.0, length, 0.0, height, VEGETATION, leaf)
    for _ in range(int(length)):  # an uneven top
        u = scene.uniform(0.0, length)
        frame.disc(u, height - 0.1, scene.uniform(0.2, 0.45), VEGETATION, _scale(leaf, scene.uniform(0.9, 1.2)))


def _park(scene: Scene, side: int, z: float, length: float) -> None:
    x = side * scene.facade
    scene.ground(x, x + 40.0 * side, z, z + length, TERRAIN, scene.paint(GRASS))
    for row in (14.0, 8.0, 3.0):
        for _ in range(2):
            if scene.chance(0.7):
                _tree(scene, x + side * row, z + scene.uniform(0.3, 0.9) * length)


def _behind(scene: Scene, side: int, z: float, length: float) -> None:
    """A garden or a yard, seen over a wall, a fence or a hedge."""
    x = side * scene.facade
    scene.ground(x, x + 40.0 * side, z, z + length, TERRAIN, scene.paint(GRASS))
    if scene.chance(0.5):
        _building(scene, side, z + 1.0, length - 2.0, scene.uniform(5.0, 9.0))
    for _ in range(int(scene.uniform(0.0, 3.0))):
        _tree(scene, x + side * scene.uniform(2.0, 4.0), z + scene.uniform(0.3, 0.9) * length)


def _square(scene: Scene, side: int, z: float, length: float) -> None:
    x = side * scene.facade
    scene.ground(x, x + 40.0 * side, z, z + length, SIDEWALK, scene.paint(PAVINGS))


def _side_street(scene: Scene, side: int, z: float, length: float) -> None:
    x, grey = side * scene.kerb, scene.uniform(76.0, 124.0)
    scene.ground(x, x + 40.0 * side, z, z + length, SIDEWALK, scene.paint(PAVINGS))
    scene.ground(x, x + 40.0 * side, z + 1.5, z + length - 1.5, ROAD, _rgb(grey, grey, grey))


STRETCHES = {"wall": _wall, "fence": _fence}
QUARTERS = (  # what lines the street
    (_building, _building, _building, _building, _side_street),
    (_building, _building, _wall, _building, _fence, _park, _hedge),
    (_hedge, _fence, _building, _park, _wall, _building),
)


def _sides(scene: Scene, furniture: str) -> None:
    """Both sides of the street, from far to near; a wall or fence that is due comes first into view."""
    due = scene.pick((-1, 1)) if furniture in STRETCHES else 0
    for side in (-1, 1):
        quarter, z = scene.pick(QUARTERS), scene.in_view(side * scene.facade)
        stretches = []
        if scene.crossing and not scene.zebra:  # a square, with the tram's way across the street behind it
            z, start = scene.crossing + 4.5, scene.camera.near
            stretches = [(_square, start, scene.crossing - 1.0 - start), (_side_street, z - 5.5, 5.5)]
        if side == due:
            length = scene.uniform(11.0, 18.0)
            stretches.append((STRETCHES[furniture], z, length))
            z += length
        elif not scene.rails:
            z *= scene.uniform(0.5, 0.9)
        while z < FAR:
            length = scene.uniform(7.0, 17.0)
            stretches.append((scene.pick(quarter), z, length))
            z += length
        for paint, start, length in reversed(stretches):
            paint(scene, side, start, length)


# ----------------------------------------------------------------------------------------------- vehicles


def _car(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    estate, tall = scene.chance(0.4), scene.uniform(1.38, 1.75)
    long, wide, deck = scene.uniform(1.9, 2.3), scene.uniform(0.84, 0.95), 0.62 * tall  # long, wide: halves
    back, top_back = (-long, 0.15 - long) if estate else (-0.85 * long, -0.5 * long)
    front, top_front = 0.45 * long, 0.1 * long
    glass = _scale((58, 66, 76), scene.uniform(0.6, 1.5))
    frame.footprint(2.0 * long + 0.2, 2.0 * wide + 0.3, 0.7, 0.25 * scene.mood.sun)
    v, u = math.copysign(wide, frame.eye[1]), math.copysign(long, frame.eye[0])
    w, ahead = 0.82 * v, u > 0.0
    low, high = (front, top_front) if ahead else (back, top_back)
    beside, detail = abs(frame.eye[1]) > wide, z < 45.0
    if beside:
        frame.rect(-long, long, 0.22, deck, CAR, _scale(colour, 0.9), v)
        if detail:
            frame.rect(-long, long, 0.2, 0.36, CAR, _scale(colour, 0.6), v)
            frame.rect(-0.1, -0.05, 0.35, deck, CAR, _scale(colour, 0.6), v)
        for hub in (-0.62 * long, 0.62 * long):
            frame.disc(hub, 0.32, 0.34, CAR, (22, 22, 24), v)
            if detail:
                frame.disc(hub, 0.32, 0.18, CAR, (120, 122, 126), v)
    if abs(frame.eye[0]) > long:
        for tyre in (-0.8 * wide, 0.62 * wide):
            frame.across(tyre, tyre + 0.2 * wide, 0.0, 0.4, CAR, (22, 22, 24), u)
        frame.across(-wide, wide, 0.2, deck, CAR, colour, u)
    frame.face(((-long, -wide, deck), (long, -wide, deck), (long, wide, deck), (-long, wide, deck)),
               CAR, _scale(colour, 1.15))
    roof = ((top_back, -0.82 * wide, tall), (top_front, -0.82 * wide, tall),
            (top_front, 0.82 * wide, tall), (top_back, 0.82 * wide, tall))
    frame.face(roof, CAR, _scale(colour, 1.1))
    if beside:
        frame.face(((back, v, deck), (front, v, deck), (top_front, w, tall), (top_back, w, tall)), CAR, colour)
        frame.face(((0.9 * back, v, deck + 0.03), (0.85 * front, v, deck + 0.03),
                    (0.8 * top_front, w, tall - 0.08), (0.94 * top_back, w, tall - 0.08)), CAR, glass)
        if detail:
            frame.face(((-0.1, v, deck), (0.02, v, deck), (0.02, w, tall), (-0.1, w, tall)), CAR, colour)
    frame.face(((low, -wide, deck), (low, wide, deck), (high, 0.82 * wide, tall), (high, -0.82 * wide, tall)),
               CAR, _scale(colour, 0.95))
    frame.face(((low, -0.88 * wide, deck + 0.04), (low, 0.88 * wide, deck + 0.04),
                (high, 0.72 * wide, tall - 0.08), (high, -0.72 * wide, tall - 0.08)), CAR, glass)
    if detail:
        frame.across(-wide, wide, 0.22, 0.4, CAR, _scale(colour, 0.55), u)
        lamp = (250, 246, 224) if ahead else (190, 24, 22)
        for edge in (-0.95 * wide, 0.6 * wide):
            frame.across(edge, edge + 0.35 * wide, 0.68 * deck, 0.85 * deck, CAR, lamp, u)
        frame.across(-0.28, 0.28, 0.46, 0.6, CAR, (226, 224, 210), u)


def _hull(frame: Frame, label: int, colour: Colour, ends: tuple[float, float], wide: float, low: float,
          high: float) -> tuple[float, float]:
    """The visible faces of a box from ends[0] to ends[1] along u; returns the (u, v) of those faces."""
    u = ends[1] if frame.eye[0] > ends[1] else ends[0]
    v = math.copysign(wide, frame.eye[1])
    if abs(frame.eye[1]) > wide:
        frame.rect(*ends, low, high, label, colour, v)
    frame.across(-wide, wide, low, high, label, colour, u)
    return u, v


def _wheels(frame: Frame, label: int, hubs: Sequence[float], radius: float, v: float, u: float) -> None:
    """Wheels along the visible side, and the tyres seen from the end."""
    if abs(frame.eye[1]) > abs(v):
        for hub in hubs:
            frame.disc(hub, radius, radius, label, (20, 20, 22), 1.01 * v)
            frame.disc(hub, radius, 0.5 * radius, label, (110, 110, 114), 1.01 * v)
    for edge in (-0.95 * abs(v), 0.7 * abs(v)):
        frame.across(edge, edge + 0.25 * abs(v), 0.0, radius, label, (20, 20, 22), u)


def _bus(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    long, wide, high, glass = scene.uniform(4.5, 6.0), 1.25, scene.uniform(2.9, 3.3), (44, 50, 58)
    frame.footprint(2.0 * long, 2.9, 0.7, 0.5 * scene.mood.sun)
    u, v = _hull(frame, BUS, colour, (-long, long), wide, 0.3, high)
    beside = abs(frame.eye[1]) > wide
    if beside:
        frame.rect(-long, long, 1.25, high - 0.45, BUS, glass, v)
        for pillar in range(1, 7):
            p = long * (pillar / 3.5 - 1.0)
            frame.rect(p - 0.06, p + 0.06, 1.25, high - 0.45, BUS, colour, v)
        for door in (-0.1, 0.78 * long):
            frame.rect(door, door + 1.1, 0.4, high - 0.5, BUS, (70, 80, 90), v)
        frame.rect(-long, long, 0.75, 0.95, BUS, _mix(colour, (250, 250, 250), 0.6), v)
    frame.across(-1.12, 1.12, 1.2, high - 0.6, BUS, (60, 68, 78), u)
    frame.across(-0.9, 0.9, high - 0.5, high - 0.12, BUS, (24, 24, 24), u)
    frame.across(-0.5, 0.5, high - 0.42, high - 0.2, BUS, (250, 180, 60), u)
    _lamps(frame, BUS, u, wide, 0.75)
    _wheels(frame, BUS, (-0.55 * long, 0.6 * long), 0.48, v, u)


def _truck(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    long, wide, high, cab = scene.uniform(3.4, 4.8), 1.25, scene.uniform(2.9, 3.7), scene.uniform(2.4, 2.9)
    cargo = scene.paint(PAINTS + ((224, 222, 216), (180, 176, 168)))
    frame.footprint(2.0 * long, 2.8, 0.7, 0.5 * scene.mood.sun)
    parts = [(0, -long, long - 2.1), (1, long - 1.9, long)]  # cargo, cab
    if frame.eye[0] < long - 2.0:
        parts.reverse()
    frame.rect(-long, long, 0.45, 0.9, TRUCK, (40, 40, 42), math.copysign(0.9, frame.eye[1]))
    for is_cab, tail, head in parts:
        if is_cab:
            u, v = _hull(frame, TRUCK, colour, (tail, head), 1.15, 0.45, cab)
            if abs(frame.eye[1]) > wide:
                frame.rect(head - 1.2, head - 0.25, 1.5, cab - 0.3, TRUCK, (50, 56, 64), v)
            if u == head:
                frame.across(-1.05, 1.05, 1.45, cab - 0.25, TRUCK, (56, 62, 70), u)
                frame.across(-0.8, 0.8, 0.75, 1.2, TRUCK, _scale(colour, 0.6), u)
        else:
            u, v = _hull(frame, TRUCK, cargo, (tail, head), wide, 0.85, high)
            if abs(frame.eye[1]) > wide and scene.chance(0.6):
                frame.rect(0.7 * tail, 0.5 * head, 1.6, high - 0.7, TRUCK, scene.paint(PAINTS), v)
            if u == tail:
                frame.across(-0.03, 0.03, 0.95, high - 0.1, TRUCK, _scale(cargo, 0.6), u)
                frame.across(-wide, wide, 0.6, 0.85, TRUCK, (50, 50, 52), u)
    u = math.copysign(long, frame.eye[0])
    _lamps(frame, TRUCK, u, 1.15, 0.66)
    _wheels(frame, TRUCK, (-0.7 * long, -0.4 * long, 0.72 * long), 0.5, math.copysign(1.15, frame.eye[1]), u)


def _train(scene: Scene, x: float, z: float, dx: float, dz: float) -> None:
    """A tram, on rails."""
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    second, wide, high = scene.paint(((236, 232, 220), (60, 62, 66), (214, 190, 120))), 1.3, 3.4
    long = scene.uniform(9.0, 14.0)
    frame.footprint(2.0 * long, 2.8, 0.7, 0.4 * scene.mood.sun)
    frame.rect(-0.3 * long, 0.3 * long, high, high + 0.35, TRAIN, (90, 92, 96))
    top = ((0.0, high + 0.3), (0.9, high + 0.9), (0.2, high + 1.5), (0.05, high + 1.5), (0.7, high + 0.9))
    frame.poly(top, TRAIN, (50, 50, 54))
    u, v = _hull(frame, TRAIN, colour, (-long, long), wide, 0.15, high)
    if abs(frame.eye[1]) > wide:
        frame.rect(-long, long, 1.3, high, TRAIN, second, v)
        frame.rect(0.3 - long, long - 0.3, 1.45, high - 0.7, TRAIN, (40, 46, 54), v)
        for pillar in range(1, 12):
            p = long * (pillar / 6.0 - 1.0)
            frame.rect(p - 0.08, p + 0.08, 1.45, high - 0.7, TRAIN, second, v)
        for joint in (-long / 3.0, long / 3.0):  # gangways and doors
            frame.rect(joint - 0.35, joint + 0.35, 0.2, high, TRAIN, (34, 34, 36), v)
            frame.rect(joint + 1.2, joint + 2.6, 0.35, high - 0.7, TRAIN, (86, 96, 104), v)
        frame.rect(-long, long, 0.1, 0.45, TRAIN, (44, 44, 46), v)
    frame.across(-wide, wide, 1.3, high, TRAIN, second, u)
    frame.face(((u, -1.1, 1.35), (u, 1.1, 1.35), (u, 0.95, high - 0.7), (u, -0.95, high - 0.7)), TRAIN, (40, 46, 54))
    frame.across(-0.6, 0.6, high - 0.5, high - 0.15, TRAIN, (250, 190, 70), u)
    _lamps(frame, TRAIN, u, wide, 0.85)
    frame.across(-1.0, 1.0, 0.1, 0.4, TRAIN, (44, 44, 46), u)


def _lamps(frame: Frame, label: int, u: float, wide: float, y: float) -> None:
    """White lamps at the front end, red ones at the rear."""
    colour = (252, 248, 226) if u > 0.0 else (196, 26, 24)
    for edge in (-0.92 * wide, 0.66 * wide):
        frame.across(edge, edge + 0.26 * wide, y - 0.12, y + 0.12, label, colour, u)


def _two_wheels(frame: Frame, label: int, base: float, radius: float, tyre: float, hub: float) -> None:
    """Wheels seen from the side, and their tyres seen from an end."""
    for u in (-base, base):
        frame.disc(u, radius, radius, label, (24, 24, 26))
        frame.disc(u, radius, hub, label, (112, 112, 114))
        frame.across(-0.5 * tyre, 0.5 * tyre, 0.0, 2.0 * radius, label, (26, 26, 28), u)


def _bicycle(scene: Scene, x: float, z: float, dx: float, dz: float, ridden: bool = True) -> None:
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    frame.footprint(1.8, 0.6, 0.55, 0.2 * scene.mood.sun)
    _two_wheels(frame, BICYCLE, 0.56, 0.37, 0.06, 0.29)
    joints = ((-0.56, 0.37), (-0.2, 0.82), (0.36, 0.84), (-0.02, 0.3), (-0.2, 0.82))
    for (u0, y0), (u1, y1) in itertools.pairwise(joints):
        tube = ((u0, y0 - 0.04), (u1, y1 - 0.04), (u1, y1 + 0.05), (u0, y0 + 0.05))
        frame.poly(tube, BICYCLE, colour)
    frame.poly(((0.5, 0.37), (0.62, 0.37), (0.42, 1.0), (0.3, 1.0)), BICYCLE, colour)
    frame.rect(-0.32, -0.06, 0.88, 0.98, BICYCLE, (30, 28, 28))
    frame.across(-0.28, 0.28, 0.98, 1.06, BICYCLE, (40, 40, 42), 0.35)
    if ridden:
        _rider(scene, frame, scene.chance(0.4))


def _motorcycle(scene: Scene, x: float, z: float, dx: float, dz: float, ridden: bool = True) -> None:
    frame, colour = Frame(scene, x, z, dx, dz), scene.paint(PAINTS)
    frame.footprint(2.1, 0.8, 0.6, 0.2 * scene.mood.sun)
    _two_wheels(frame, MOTORCYCLE, 0.72, 0.36, 0.18, 0.18)
    tank = ((-0.95, 0.8), (-0.5, 0.35), (0.5, 0.35), (0.75, 0.95), (0.25, 1.0), (-0.2, 0.8))
    frame.poly(tank, MOTORCYCLE, colour)
    frame.rect(-0.45, 0.4, 0.25, 0.6, MOTORCYCLE, (64, 64, 68))
    frame.poly(((-1.0, 0.82), (-0.15, 0.78), (-0.15, 0.9), (-1.0, 0.98)), MOTORCYCLE, (30, 28, 28))
    ahead = frame.eye[0] > 0.0
    for u in (-0.8, 0.5) if ahead else (0.5, -0.8):
        frame.across(-0.24, 0.24, 0.42, 1.0, MOTORCYCLE, colour, u)
    frame.across(-0.42, 0.42, 1.0, 1.1, MOTORCYCLE, (40, 40, 42), 0.5)
    frame.across(-0.12, 0.12, 0.74, 0.94, MOTORCYCLE, (252, 246, 214) if ahead else (190, 26, 24), 0.7 if ahead else -1.0)
    for edge in (-0.34, 0.22):  # mirrors
        frame.across(edge, edge + 0.12, 1.14, 1.24, MOTORCYCLE, (30, 30, 32), 0.5)
    if ridden:
        _rider(scene, frame, True)


def _rider(scene: Scene, frame: Frame, helmet: bool) -> None:
    """Whoever sits on it: a leaning body seen from the side, shoulders across, head or helmet."""
    coat, legs, skin = scene.paint(CLOTHES), scene.paint(CLOTHES), scene.paint(SKINS)
    for v in (-0.16, 0.16):
        knee = ((-0.3, 0.85), (0.05, 0.95), (0.2, 0.75), (0.08, 0.2), (-0.06, 0.2), (0.0, 0.68))
        frame.poly(knee, RIDER, legs, v)
        frame.face(((0.05, v - 0.09, 0.25), (0.05, v + 0.09, 0.25), (0.05, v + 0.11, 0.95), (0.05, v - 0.11, 0.95)),
                   RIDER, legs)
    frame.poly(((-0.38, 0.88), (-0.02, 0.88), (0.26, 1.35), (0.14, 1.55), (-0.12, 1.5)), RIDER, coat)
    frame.poly(((0.1, 1.4), (0.2, 1.3), (0.5, 1.02), (0.42, 1.0)), RIDER, _scale(coat, 0.85))
    frame.face(((0.0, -0.2, 0.86), (0.0, 0.2, 0.86), (0.05, 0.3, 1.3), (0.05, 0.22, 1.53), (0.05, -0.22, 1.53),
                (0.05, -0.3, 1.3)), RIDER, coat)
    head = Frame(scene, frame.x + 0.14 * frame.dx, frame.z + 0.14 * frame.dz)
    if helmet:
        head.disc(0.0, 1.68, 0.17, RIDER, scene.paint(PAINTS))
        head.rect(-0.1, 0.1, 1.6, 1.68, RIDER, scene.pick((skin, (26, 26, 30))))
    else:
        head.disc(0.0, 1.67, 0.14, RIDER, skin)
        head.disc(0.0, 1.73, 0.12, RIDER, scene.paint(WOOD))


# --------------------------------------------------------------------------------- people, plants, furniture


def _person(scene: Scene, x: float, z: float) -> None:
    frame = Frame(scene, x, z)
    k = scene.uniform(0.62, 0.85) if scene.chance(0.12) else scene.uniform(0.92, 1.08)
    coat, legs, skin = scene.paint(CLOTHES), scene.paint(CLOTHES), scene.paint(SKINS)
    stride, hip, hem = scene.uniform(0.04, 0.3) * k, 0.92 * k, scene.uniform(0.6, 0.95) * k
    frame.footprint(0.6, 0.45, 0.55, 0.3 * scene.mood.sun)
    for foot, shade in ((-stride, 0.85), (stride, 1.0)):
        knee = 0.4 * foot + 0.03
        leg = ((-0.13 * k, hip), (knee - 0.08, 0.5 * k), (foot - 0.07, 0.0), (foot + 0.1, 0.0),
               (knee + 0.08, 0.5 * k), (0.13 * k, hip))
        frame.poly(leg, PERSON, _scale(legs, shade))
    arm = scene.uniform(-0.12, 0.16)
    for edge in (-0.26 * k, 0.18 * k):
        frame.poly(((edge, 1.42 * k), (edge + 0.09, 1.42 * k), (edge + arm + 0.09, 0.85 * k), (edge + arm, 0.85 * k)),
                   PERSON, _scale(coat, 0.82))
    frame.poly(((-0.2 * k, hem), (0.2 * k, hem), (0.19 * k, 1.05 * k), (0.23 * k, 1.4 * k), (0.1 * k, 1.5 * k),
                (-0.1 * k, 1.5 * k), (-0.23 * k, 1.4 * k), (-0.19 * k, 1.05 * k)), PERSON, coat)
    frame.disc(0.0, 1.64 * k, 0.135 * k, PERSON, scene.paint(((40, 30, 26), (96, 70, 48), (180, 170, 160))))
    if scene.chance(0.6):  # facing us
        frame.disc(0.0, 1.61 * k, 0.1 * k, PERSON, skin)
    if scene.chance(0.3):
        frame.rect(0.16 * k, 0.36 * k, 0.6 * k, 0.95 * k, PERSON, scene.paint(PAINTS))


def _tree(scene: Scene, x: float, z: float) -> None:
    frame, leaf = Frame(scene, x, z), scene.paint(LEAVES)
    height = scene.uniform(4.5, 9.0)
    crown = scene.uniform(0.24, 0.34) * height
    middle = height - crown
    lean = -scene.sun * 0.5 * height
    reach = [(x + lean + crown * c, z + crown * s) for c, s in CIRCLE]
    scene.shadow(reach, 0.5 * scene.mood.sun)
    frame.poly(((-0.2, 0.0), (0.2, 0.0), (0.1, middle), (-0.1, middle)), VEGETATION, scene.paint(((92, 74, 58),)))
    for step in range(11):  # dark leaves first, sunlit ones last
        light = 0.62 + 0.06 * step
        u, y = scene.uniform(-0.7, 0.7) * crown, scene.uniform(-0.75, 0.7) * crown
        radius = scene.uniform(0.32, 0.6) * crown
        bias = 0.02 * step * crown
        frame.disc(u + scene.sun * bias, middle + y + bias, radius, VEGETATION, _scale(leaf, light))


def _bush(scene: Scene, x: float, z: float) -> None:
    frame, leaf = Frame(scene, x, z), scene.paint(LEAVES)
    for step in range(5):
        radius = scene.uniform(0.25, 0.5)
        frame.disc(scene.uniform(-0.6, 0.6), 0.8 * radius, radius, VEGETATION, _scale(leaf, 0.75 + 0.1 * step))


def _lamp(scene: Scene, x: float, z: float) -> None:
    frame, colour, height = Frame(scene, x, z), scene.paint(WOOD), scene.uniform(5.0, 7.5)
    arm = -1.6 if x > 0.0 else 1.6
    frame.poly(((-0.1, 0.0), (0.1, 0.0), (0.07, height), (-0.07, height)), POLE, colour)
    frame.poly(((0.0, height - 0.3), (0.0, height), (arm, height + 0.3), (arm, height + 0.15)), POLE, colour)
    bulb = (255, 236, 190) if scene.mood.lamps else _scale(colour, 1.2)
    frame.rect(min(arm, 0.6 * arm), max(arm, 0.6 * arm), height + 0.05, height + 0.3, POLE, bulb)


def _signal(scene: Scene, x: float, z: float) -> None:
    """A traffic light; some carry a second one on an arm over the road."""
    frame, colour, lit = Frame(scene, x, z), scene.paint(((70, 74, 76), (120, 124, 122), (50, 66, 56))), 0
    heads = [(0.0, scene.uniform(2.3, 2.8))]
    if scene.chance(0.5):
        arm = math.copysign(scene.uniform(2.0, 3.2), -x)
        heads.append((arm, 4.3))
        frame.rect(min(arm, 0.0), max(arm, 0.0), 5.3, 5.46, POLE, colour)
    frame.rect(-0.1, 0.1, 0.0, 5.5 if len(heads) > 1 else 3.4, POLE, colour)
    case, lit = scene.pick(((26, 28, 28), (40, 44, 40), (150, 130, 40))), int(scene.random() * 4)
    for u, y in heads:
        frame.rect(u - 0.27, u + 0.27, y, y + 1.25, LIGHT, case)
        for lamp, bright in enumerate(((60, 220, 130), (250, 190, 50), (240, 50, 40))):
            glow = bright if lamp == lit else _scale(bright, 0.25)
            frame.disc(u, y + 0.25 + 0.38 * lamp, 0.16, LIGHT, glow)


def _sign(scene: Scene, x: float, z: float) -> None:
    """A traffic sign on its pole, or a board on two."""
    frame, grey = Frame(scene, x, z), scene.paint(((140, 142, 142), (96, 98, 98)))
    ink = scene.pick(((200, 34, 34), (30, 76, 160), (232, 186, 40), (40, 120, 80), (196, 198, 196)))
    pale, y = (238, 236, 230), scene.uniform(2.2, 2.7)
    shape = int(scene.random() * 5)
    if shape == 4:
        for u in (-0.9, 0.9):
            frame.rect(u - 0.06, u + 0.06, 0.0, y + 0.9, POLE, grey)
        frame.rect(-1.2, 1.2, y, y + 1.2, SIGN, ink)
        for row in range(3):
            frame.rect(-1.0, scene.uniform(0.1, 0.9), y + 0.2 + 0.32 * row, y + 0.34 + 0.32 * row, SIGN, pale)
        return
    frame.rect(-0.06, 0.06, 0.0, y + 0.6, POLE, grey)
    for size, paint in ((0.5, ink), (0.34, pale), (0.14, scene.pick((ink, (30, 30, 32), pale)))):
        if shape == 0:
            frame.disc(0.0, y + 0.4, size, SIGN, paint)
        elif shape == 1:
            frame.poly(((-size, y + 0.4 - 0.7 * size), (size, y + 0.4 - 0.7 * size), (0.0, y + 0.4 + size)), SIGN, paint)
        elif shape == 2:
            frame.rect(-size, size, y + 0.4 - size, y + 0.4 + size, SIGN, paint)
        else:
            frame.poly(((-size, y + 0.4), (0.0, y + 0.4 - size), (size, y + 0.4), (0.0, y + 0.4 + size)), SIGN, paint)


def _litter_bin(scene: Scene, x: float, z: float) -> None:
    frame, colour = Frame(scene, x, z), scene.paint(PAINTS)
    frame.footprint(0.7, 0.6, 0.5)
    frame.rect(-0.3, 0.3, 0.05, 0.95, VOID, colour)
    frame.rect(-0.34, 0.34, 0.85, 1.0, VOID, _scale(colour, 0.7))


def _bench(scene: Scene, x: float, z: float) -> None:
    frame, colour = Frame(scene, x, z, 0.0, 1.0), scene.paint(WOOD)
    frame.footprint(1.8, 0.6, 0.5)
    for u in (-0.8, 0.7):
        frame.rect(u, u + 0.1, 0.0, 0.45, VOID, (50, 50, 52))
    v = 0.4 if x > 0.0 else -0.4
    frame.rect(-0.9, 0.9, 0.55, 0.95, VOID, _scale(colour, 0.8), v)
    frame.face(((-0.9, 0.0, 0.45), (0.9, 0.0, 0.45), (0.9, v, 0.45), (-0.9, v, 0.45)), VOID, colour)


# ------------------------------------------------------------------------------------------ the whole scene


# Painter and greatest length (metres) of what drives in a lane.
LANE_USERS: dict[str, tuple[Callable[..., None], float]] = {
    "car": (_car, 4.6), "bus": (_bus, 12.0), "truck": (_truck, 9.6), "train": (_train, 28.0),
    "motorcycle": (_motorcycle, 2.4),
}


def _populate(scene: Scene, vehicle: str, furniture: str) -> None:
    """Decides what stands and moves where. `vehicle` and `furniture` are certain, all else is chance."""
    if vehicle == "train" and scene.chance(0.35):
        scene.crossing = scene.uniform(13.0, 22.0)
        x = scene.camera.x + scene.uniform(-9.0, 9.0)
        scene.add(_train, x, scene.crossing + 1.5, scene.pick((-1.0, 1.0)), 0.0, lane=scene.camera.x)
        for z in (0.8, 2.2):
            scene.rails.append((-60.0, 60.0, scene.crossing + z, scene.crossing + z + 0.12))
    elif furniture == "signals" or scene.chance(0.25):
        scene.crossing, scene.zebra = scene.uniform(7.0, 13.0), True
        for _ in range(int(scene.uniform(0.0, 4.0))):
            x, z = scene.uniform(-scene.kerb, scene.kerb), scene.uniform(0.3, 2.7)
            scene.add(_person, x, scene.crossing + z, lane=scene.camera.x)
    _traffic(scene, vehicle)
    _kerbside(scene, furniture)


def _traffic(scene: Scene, vehicle: str) -> None:
    """Both lanes and the parking lanes."""
    start = max(scene.camera.near + 4.0, scene.crossing + 4.0, 7.0)
    oncoming = scene.chance(0.6)
    for ahead in (1, -1):
        x, z = ahead * scene.drive * 0.5 * scene.half, start + scene.uniform(0.0, 4.0)
        due = oncoming == (ahead < 0) and not scene.rails
        if due and vehicle == "train":
            for rail in (-0.72, 0.66):
                scene.rails.append((x + rail, x + rail + 0.07, scene.camera.near, FAR))
        busy = scene.uniform(0.2, 0.9)
        while z < 80.0:
            kind = vehicle if due else "car"
            if not due and scene.chance(0.12):
                kind = scene.pick(("bus", "truck", "motorcycle"))
            paint, length = LANE_USERS[kind]
            if due or scene.chance(busy):
                wander = 0.0 if kind == "train" else scene.uniform(-0.2, 0.2)
                scene.add(paint, x + wander, z + 0.5 * length, 0.0, float(ahead), lane=x)
            due = False
            z += length + scene.uniform(3.0, 14.0)
    for side in (-1, 1):
        ahead, x = 1.0 if side == scene.drive else -1.0, side * (scene.half - 0.3)
        if scene.chance(0.3):
            z = start + scene.uniform(0.0, 16.0)
            scene.add(_bicycle, x, z, *_heading(scene, ahead))
        if scene.kerb - scene.half > 1.0:
            z, parked = scene.camera.near + scene.uniform(3.0, 8.0), scene.uniform(0.2, 0.95)
            while z < 70.0:
                clear = z + 2.5 < scene.crossing or z - 2.5 > scene.crossing + 3.0
                if clear and scene.chance(parked):
                    scene.add(_car, side * (scene.kerb - 1.1), z, 0.0, ahead)
                z += scene.uniform(5.2, 7.0)


def _kerbside(scene: Scene, furniture: str) -> None:
    """What stands and walks between the kerb and the facades."""
    crossing = scene.crossing
    for side in (-1, 1):
        post, inner, outer = side * (scene.kerb + 0.5), scene.kerb + scene.verge + 0.5, scene.facade - 0.5
        seen = scene.in_view(post)
        if furniture == "signals" or scene.chance(0.2):
            z = max(crossing - 0.3, 1.1 * seen + 0.5) if scene.zebra else seen + scene.uniform(1.0, 8.0)
            scene.add(_signal, post, z)
        if furniture == "signals" or scene.chance(0.45):
            scene.add(_sign, post, seen + scene.uniform(2.0, 12.0))
        for _ in range(int(scene.uniform(0.0, 3.0))):
            scene.add(_sign, post, seen + scene.uniform(8.0, 45.0))
        z, pitch = seen * scene.uniform(0.7, 1.3), scene.uniform(16.0, 30.0)
        while z < 100.0:
            scene.add(_lamp, post, z)
            z += pitch
        if scene.chance(0.5):  # an avenue
            z, pitch = seen + scene.uniform(2.0, 9.0), scene.uniform(7.0, 13.0)
            while z < 90.0:
                scene.add(_tree, side * (scene.kerb + 0.9), z)
                z += pitch * scene.uniform(0.8, 1.4)
        for _ in range(int(scene.uniform(0.0, 7.0))):
            x = side * scene.uniform(inner, outer)
            scene.add(_person, x, 1.1 * scene.in_view(x) + 40.0 * scene.random() * scene.random())
        if furniture == "bicycle" or scene.chance(0.25):
            x = side * scene.uniform(inner, 0.5 * (inner + outer))
            z = 1.15 * scene.in_view(x) + scene.uniform(0.5, 3.0)
            scene.add(_bicycle, x, z, *_heading(scene, 1.0), scene.chance(0.7))
            for bicycle in range(int(scene.uniform(0.0, 4.0))):
                scene.add(_bicycle, x, z + 3.0 + 0.8 * bicycle, 0.96, 0.28, False)
        if scene.chance(0.15):
            x = side * inner
            scene.add(_motorcycle, x, 1.1 * scene.in_view(x) + 3.0, 0.6, 0.8, False)
        for thing in (_litter_bin, _bench):
            if scene.chance(0.3):
                x = side * scene.uniform(inner, outer)
                scene.add(thing, x, scene.in_view(x) + scene.uniform(1.0, 15.0))
        if scene.verge:
            for _ in range(int(scene.uniform(0.0, 5.0))):
                x = side * (scene.kerb + 0.5 * scene.verge)
                scene.add(_bush, x, seen + scene.uniform(0.0, 30.0))


def _heading(scene: Scene, ahead: float) -> tuple[float, float]:
    """A direction roughly along the street."""
    dx, dz = scene.pick(HEADINGS)
    return dx, ahead * dz


def _bonnet(scene: Scene) -> None:
    """The camera's own car, at the lower edge: nobody's class."""
    height, width = scene.size
    colour, rise = scene.paint(PAINTS), max(1, round(height * scene.uniform(0.03, 0.07)))
    arc = ((0.0, 0.0), (0.06, 0.55), (0.2, 0.85), (0.5, 1.0), (0.8, 0.85), (0.94, 0.55), (1.0, 0.0))
    for k, light in ((1.0, 0.8), (0.75, 1.0), (0.4, 0.9)):
        outline = [(round(u * width), round(height - k * rise * y)) for u, y in arc]
        scene.draw.polygon([*outline, (width, height), (0, height)], fill=(*_scale(colour, light), VOID))


# Share of a full swing by which grain and leaves vary the brightness of a class.
TEXTURE = {ROAD: (0.12, 0.05), SIDEWALK: (0.1, 0.06), TERRAIN: (0.22, 0.25), VEGETATION: (0.25, 0.42),
           BUILDING: (0.06, 0.07), WALL: (0.09, 0.1), FENCE: (0.09, 0.12), SKY: (0.0, 0.0)}
GROUND = (ROAD, SIDEWALK, TERRAIN)


def _expose(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Takes the picture: texture, shadows on the ground, light, lens and sensor noise."""
    (height, width), random = scene.size, scene.random
    *channels, label = scene.image.split()
    grain, leaves, clouds = _noise()

    def per_class(values: Callable[[int], float]) -> np.ndarray:
        return np.asarray(label.point([int(100.0 * values(k)) for k in range(256)])).astype(np.float32)

    rough = scene.uniform(0.6, 1.4) / (100.0 * 128.0)
    gain = _crop(grain, rng, height, width) * per_class(lambda k: TEXTURE.get(k, (0.05, 0.03))[0])
    gain += _crop(leaves, rng, height, width) * per_class(lambda k: TEXTURE.get(k, (0.05, 0.03))[1])
    gain *= np.float32(rough)
    gain += _crop(clouds, rng, height, width) * np.float32(scene.uniform(0.0, 0.12) / 128.0) + 1.0
    shade = np.asarray(scene.shade.resize((width, height), Image.Resampling.BILINEAR)).astype(np.float32)
    on_ground = per_class(lambda k: float(k in GROUND))
    gain *= 1.0 - on_ground * (255.0 - shade) * np.float32(1.0 / 25500.0)
    exposure, noise = scene.uniform(0.78, 1.18), np.float32(scene.uniform(1.0, 6.0) / 128.0)
    blur = np.float32(scene.uniform(0.05, 0.2))
    image = np.empty((height, width, 3), np.uint8)
    for index, channel in enumerate(channels):
        plane = np.asarray(channel).astype(np.float32) * gain
        plane[:, 1:-1] += blur * (plane[:, :-2] + plane[:, 2:] - 2.0 * plane[:, 1:-1])
        plane[1:-1] += blur * (plane[:-2] + plane[2:] - 2.0 * plane[1:-1])
        plane *= np.float32(exposure * scene.mood.light[index] * (0.97 + 0.06 * random()))
        plane += _crop(grain, rng, height, width) * noise
        image[..., index] = np.clip(plane, 0.0, 255.0)
    return image, np.array(label)


def render(
    seed: int, index: int, size: tuple[int, int] = (256, 512)
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Renders one street frame; a pure function of its arguments.

    Args:
        seed: the data set, 0 or more.
        index: the frame within it, 0 or more. Any 16 frames in a row show all 19 classes, unless hidden.
        size: (height, width) in pixels, each at least 32.

    Returns:
        The RGB image, and its label in Cityscapes train ids 0..18 with 255 = void.

    Raises:
        ValueError: if a number is out of its range.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must both be 0 or more")
    if min(size) < MIN_SIZE:
        raise ValueError(f"size {size} is too small to hold a street; give at least {MIN_SIZE} x {MIN_SIZE} pixels")
    rng = np.random.default_rng([seed, index])
    scene = Scene(rng, size)
    vehicle, furniture = VEHICLES[index % 4], FURNITURE[(index + index // 4) % 4]
    _populate(scene, vehicle, furniture)
    _backdrop(scene)
    _ground(scene)
    _sides(scene, furniture)
    for _, paint in sorted(scene.objects, key=lambda item: item[0]):
        paint()
    if scene.chance(0.3):
        _bonnet(scene)
    return _expose(scene, rng)
