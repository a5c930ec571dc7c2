"""What `streets` draws on: colours, moods of light, a camera above a ground plane, a drawing plane in metres.

The canvas is RGBA with the Cityscapes train id in the alpha channel: one call draws a shape into image and
label, and the two cannot disagree.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
VOID = 255

MIN_SIZE = 32
FAR = 120.0  # metres; the street ends here
# Exact unit vectors, and a circle in three digits: no libm, so every platform draws the same.
HEADINGS = ((0.0, 1.0), (0.28, 0.96), (-0.28, 0.96), (0.6, 0.8), (-0.6, 0.8), (0.28, -0.96))
ARC = ((1.0, 0.0), (0.866, 0.5), (0.5, 0.866), (0.0, 1.0), (-0.5, 0.866), (-0.866, 0.5))
CIRCLE = (*ARC, *((-c, -s) for c, s in ARC))

Colour = tuple[float, float, float]  # [0, 255]; more than that is cut off when drawn
Pair = tuple[float, float]
Painter = Callable[..., None]


def _palette(codes: str) -> tuple[Colour, ...]:
    return tuple((float(r), float(g), float(b)) for r, g, b in map(bytes.fromhex, codes.split()))


BLACK, GLASS, STEEL, WHITE, RED, AMBER, GREEN = _palette(
    "18181a 384250 70727a f6f2e4 c41a18 fab43c 3cdc82"
)
FACADES = _palette("9e5846 cec2aa b2b2ae 7a787a d8c494 625a56 ac8c6e ccaca0 768492 be7854 e2ded6")
ROOFS = _palette("964a38 6e4036 56545a 463e3c 806050")
PANES = _palette("343c48 546476 24262c 788896")
PAINTS = _palette("e8e8e6 18191c a8aaae 686a6e 961a1e 1c346e 3c5442 c4a83c 765c46 4078aa c85a28")
CLOTHES = _palette("1e2028 464a5a 96282c 284682 c8c4bc 586446 be963c 6e466e 3c828c 604838")
SKINS = _palette("e8bea4 c69476 8c6048 583c30")
HAIR = _palette("281e1a 604630 b4aaa0")
LEAVES = _palette("3e5c2c 546e34 325232 687438 486042 967630")
GRASS = _palette("607a3e 747e46 546c3c 8c845c")
PAVING = _palette("96928c 7e7c7c a89688 8c8482")
TIMBER = _palette("7a5a3e 968068 5c6e54 d6d2c8 606062")
BARK = _palette("5c4a3a 4a4440")
PLATES = _palette("c82222 1e4ca0 e8ba28 287850 c4c6c4")


class Mood(NamedTuple):
    """Weather and time of day."""

    zenith: Colour
    horizon: Colour
    cloud: Colour
    light: Colour  # gain per channel
    sun: float  # strength of cast shadows, 0 to 1
    clear: float  # metres after which a colour is half haze
    lamps: bool


MOODS = (
    Mood(*_palette("4a7cc4 bed4e8 f4f6f8"), (1.08, 1.05, 1.0), 1.0, 220.0, False),  # noon
    Mood(*_palette("6092ce d6dee2 eceef0"), (1.0, 1.0, 1.0), 0.7, 160.0, False),  # fair
    Mood(*_palette("9ea6ae ced1d3 b8bcc0"), (0.95, 0.97, 1.0), 0.1, 120.0, False),  # overcast
    Mood(*_palette("c4c8ca d8dada ced0d2"), (0.98, 0.99, 1.0), 0.0, 42.0, False),  # mist
    Mood(*_palette("7084b2 faca96 fcdcbe"), (1.14, 1.0, 0.84), 0.9, 130.0, False),  # low sun
    Mood(*_palette("3a4c82 d89c88 96788c"), (0.78, 0.74, 0.8), 0.0, 130.0, True),  # dusk
)


def scale(colour: Colour, gain: float) -> Colour:
    """A colour made darker or lighter."""
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """From a at t = 0 to b at t = 1."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


class Scene:
    """One frame: chance, weather, street, camera, canvas, and the objects still to be painted.

    The camera is a level pinhole above the road that looks along it; what is nearer than `near` (the
    ground at the lower edge of the picture) is projected as if it were there.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        height, width = self.size = size
        self.random = rng.random
        self.mood: Mood = self.pick(MOODS)
        self.sun = self.pick((-1.0, 1.0))  # the side that the light comes from
        self.drive = self.pick((-1.0, 1.0, 1.0))  # 1 = right-hand traffic
        self.half = self.uniform(3.5, 5.0)  # from the centre line to the edge line
        self.kerb = self.half + self.pick((0.3, 2.3, 2.3))  # with or without a parking lane
        self.verge = self.pick((0.0, 0.0, 1.2, 2.0))
        self.facade = self.kerb + self.verge + self.uniform(2.2, 4.5)
        self.crossing = 0.0  # metres to the tram or the people that cross the road; 0 = none
        self.zebra = False
        self.rails: list[tuple[float, float, float, float]] = []  # x0, x1, z0, z1
        self.focal = self.uniform(0.62, 0.85) * math.sqrt(2.0 * height * width)
        self.eye_x = self.drive * self.half * self.uniform(0.2, 0.6)
        self.eye_y = self.uniform(1.35, 2.1)
        self.centre, self.horizon = width * self.uniform(0.4, 0.6), height * self.uniform(0.38, 0.5)
        self.near = self.eye_y * self.focal / (height - self.horizon + 2.0)
        self.image = Image.fromarray(_sky(self))
        self.draw = ImageDraw.Draw(self.image)
        # Light on the ground at half resolution: the shadows are soft, and cheap.
        self.shade = Image.new("L", ((width + 1) // 2, (height + 1) // 2), 255)
        self.shade_draw = ImageDraw.Draw(self.shade)
        self.queue: list[tuple[tuple[bool, float, float], Painter]] = []

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def several(self, most: int) -> Iterable[int]:
        """Counts from 0 to a random number, at most `most` times."""
        return range(int(self.random() * (most + 1)))

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[int(self.random() * len(options))]

    def paint(self, palette: Sequence[Colour]) -> Colour:
        """A colour near one of the palette's."""
        r, g, b = scale(self.pick(palette), self.uniform(0.82, 1.18))
        warm = self.uniform(-8.0, 8.0)
        return max(r + warm, 0.0), g, max(b - warm, 0.0)

    def project(self, x: float, y: float, z: float) -> tuple[int, int]:
        """The pixel (column, row) of a point."""
        k = self.focal / (z if z > self.near else self.near)
        return int(self.centre + (x - self.eye_x) * k), int(self.horizon + (self.eye_y - y) * k)

    def tone(self, colour: Colour, z: float, label: int) -> tuple[int, int, int, int]:
        """What to fill with: the colour as it arrives through z metres of haze, and the label."""
        r, g, b = mix(colour, self.mood.horizon, z / (z + self.mood.clear))
        return min(int(r), 255), min(int(g), 255), min(int(b), 255), label

    def ground(
        self, x0: float, x1: float, z0: float, z1: float, label: int, colour: Colour
    ) -> None:
        """Fills a rectangle on the ground; long ones in pieces, for the haze."""
        near = max(z0, self.near)
        while near < z1:
            far = z1 if z1 < 2.0 * near else 1.6 * near
            corners = [self.project(x, 0.0, z) for z in (near, far) for x in (x0, x1)]
            corners[2:] = corners[:1:-1]
            self.draw.polygon(corners, fill=self.tone(colour, 0.5 * (near + far), label))
            near = far

    def shadow(self, points: Iterable[tuple[float, float]], strength: float) -> None:
        """Darkens a polygon of (x, z) on the ground; what stands there stays as it is."""
        pixels = [self.project(x, 0.0, z) for x, z in points]
        level = int(255.0 * (1.0 - strength))
        self.shade_draw.polygon([(x // 2, y // 2) for x, y in pixels], fill=level)

    def in_view(self, x: float) -> float:
        """The distance (metres) from which on the line along x is inside the picture."""
        room = self.size[1] - self.centre if x > self.eye_x else self.centre
        return max(self.focal * abs(x - self.eye_x) / room, self.near)

    def add(
        self, paint: Painter, x: float, z: float, *options: Any, lane: float | None = None
    ) -> None:
        """Queues `paint(scene, x, z, *options)`.

        The order is exact for what keeps to its lane: beyond the crossing before this side of it, outer
        lanes before inner ones (a ray from the camera meets the inner first), far before near. `lane` is
        the middle of the lane where that is not x; the camera's own x suits what crosses all lanes.
        """
        aside = abs((x if lane is None else lane) - self.eye_x)
        task = functools.partial(paint, self, x, z, *options)
        self.queue.append(((z < self.crossing, -aside, -z), task))


class Frame:
    """A place to draw objects of one class: u runs along its direction, v to the right of that, y up."""

    def __init__(
        self, scene: Scene, x: float, z: float, label: int, dx: float = 1.0, dz: float = 0.0
    ) -> None:
        self.scene, self.x, self.z, self.label, self.dx, self.dz = scene, x, z, label, dx, dz
        self.light = 1.0
        aside = scene.eye_x - x
        self.eye_u, self.eye_v = aside * dx - z * dz, aside * dz + z * dx  # where the camera is

    def face(self, points: Sequence[tuple[float, float, float]], colour: Colour) -> None:
        """Fills a polygon of (u, v, y)."""
        scene, z, dx, dz = self.scene, self.z, self.dx, self.dz
        focal, near, aside = scene.focal, scene.near, self.x - scene.eye_x
        pixels = []
        for u, v, y in points:  # scene.project, unrolled: most of the time goes here
            depth = z + u * dz - v * dx
            k = focal / (depth if depth > near else near)
            row = scene.horizon + (scene.eye_y - y) * k
            pixels.append((int(scene.centre + (aside + u * dx + v * dz) * k), int(row)))
        (u0, v0, _), (u1, v1, _) = points[0], points[len(points) // 2]
        depth = max(z + 0.5 * ((u0 + u1) * dz - (v0 + v1) * dx), 0.0)
        colour = colour if self.light == 1.0 else scale(colour, self.light)
        scene.draw.polygon(pixels, fill=scene.tone(colour, depth, self.label))

    def poly(self, colour: Colour, *uy: float, v: float = 0.0) -> None:
        """Fills an upright polygon along u, given as u, y, u, y, ..."""
        self.face([(u, v, y) for u, y in zip(uy[::2], uy[1::2], strict=True)], colour)

    def rect(
        self, u0: float, u1: float, y0: float, y1: float, colour: Colour, v: float = 0.0
    ) -> None:
        """Fills an upright rectangle along u."""
        self.face(((u0, v, y0), (u1, v, y0), (u1, v, y1), (u0, v, y1)), colour)

    def row(
        self, ends: Pair, count: int, width: float, ys: Pair, colour: Colour, v: float = 0.0
    ) -> None:
        """Fills count + 1 upright rectangles of one width (metres), from one end to the other."""
        for i in range(count + 1):
            u = ends[0] + (ends[1] - ends[0]) * i / count
            self.rect(u - 0.5 * width, u + 0.5 * width, *ys, colour, v)

    def span(
        self, u0: float, w0: float, y0: float, u1: float, w1: float, y1: float, colour: Colour
    ) -> None:
        """Fills a panel across v, upright or not, 2 * w0 wide at (u0, y0) and 2 * w1 at (u1, y1)."""
        self.face(((u0, -w0, y0), (u0, w0, y0), (u1, w1, y1), (u1, -w1, y1)), colour)

    def twins(self, u: float, v0: float, v1: float, y0: float, y1: float, colour: Colour) -> None:
        """Fills two upright rectangles across v, mirror images: lamps, tyres."""
        for s in (-1.0, 1.0):
            self.face(((u, s * v0, y0), (u, s * v1, y0), (u, s * v1, y1), (u, s * v0, y1)), colour)

    def disc(self, u: float, y: float, radius: float, colour: Colour, v: float = 0.0) -> None:
        """Fills an upright disc along u."""
        if self.dz:
            self.face([(u + radius * c, v, y + radius * s) for c, s in CIRCLE], colour)
            return
        scene, z = self.scene, max(self.z - v * self.dx, self.scene.near)
        (x, y), r = scene.project(self.x + u * self.dx, y, z), int(radius * scene.focal / z)
        fill = scene.tone(scale(colour, self.light), z, self.label)
        scene.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def box(
        self, u0: float, u1: float, w: float, y0: float, y1: float, colour: Colour
    ) -> tuple[float, float, bool]:
        """Fills the visible end and side of a box; returns u of the one, v of the other and if it is seen."""
        u, v = u1 if self.eye_u > u1 else u0, math.copysign(w, self.eye_v)
        beside = abs(self.eye_v) > w
        if beside:
            self.rect(u0, u1, y0, y1, scale(colour, 0.88), v)
        self.span(u, w, y0, u, w, y1, colour)
        return u, v, beside

    def wheels(self, hubs: Iterable[float], radius: float, v: float, rim: float = 0.5) -> None:
        """Wheels along the side at v."""
        for u in hubs:
            self.disc(u, radius, radius, BLACK, v)
            self.disc(u, radius, rim * radius, STEEL, v)

    def lamps(self, u: float, w: float, y: float) -> None:
        """White lamps at the front end, red ones at the rear."""
        self.twins(u, 0.66 * w, 0.94 * w, y - 0.1, y + 0.12, WHITE if u > 0.0 else RED)

    def footprint(self, length: float, width: float, lean: float) -> None:
        """A shadow below an object of this size, which leans away from the sun by so many metres."""
        lean *= -self.scene.sun * self.scene.mood.sun
        corners, points = (
            ((-length, -width), (length, -width), (length, width), (-length, width)),
            [],
        )
        for u, v in corners:
            x = self.x + lean + 0.5 * (u * self.dx + v * self.dz)
            points.append((x, self.z + 0.5 * (u * self.dz - v * self.dx)))
        self.scene.shadow(points, 0.65)


# Textures and sky.


@functools.cache
def textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three fixed textures, int8 [1024, 2048]: grain, leaves (a few pixels wide), clouds (a hundred)."""
    rng = np.random.default_rng(19)

    def layer(cell: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (1024 // cell + 2, 2048 // cell + 2), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((2048, 1024), Image.Resampling.BICUBIC)
        return np.asarray(smooth).astype(np.int16) - 128

    grain, leaves = layer(1), (2 * layer(2) + 3 * layer(4) + 2 * layer(9)) // 7
    clouds = (8 * layer(160) + 4 * layer(72) + 2 * layer(30) + layer(12)) // 15
    return grain.astype(np.int8), leaves.astype(np.int8), clouds.astype(np.int8)


def window(scene: Scene, noise: np.ndarray, height: int, swing: float) -> np.ndarray:
    """A random window of a texture, float32 [height, w] in [-swing, swing); it repeats if too small."""
    (rows, columns), width = noise.shape, scene.size[1]
    if height > rows or width > columns:
        noise = np.tile(noise, (-(-height // rows), -(-width // columns)))
        rows, columns = noise.shape
    y, x = int(scene.random() * (rows - height + 1)), int(scene.random() * (columns - width + 1))
    return noise[y : y + height, x : x + width] * np.float32(swing / 128.0)


def _sky(scene: Scene) -> np.ndarray:
    """The empty canvas, uint8 [h, w, 4]: gradient and clouds above the horizon, earth below."""
    (height, width), mood = scene.size, scene.mood
    rows = int(scene.horizon) + 1
    canvas = np.empty((height, width, 4), np.uint8)
    canvas[:rows, :, 3] = SKY
    canvas[rows:] = scene.tone(scene.paint(GRASS), 40.0, TERRAIN)
    t = np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None]
    clouds = window(scene, textures()[2], rows, 3.0) + np.float32(scene.uniform(-0.8, 0.7))
    clouds = clouds.clip(0.0, 1.0) * (0.95 - 0.5 * t)
    for channel in range(3):
        blue = mood.zenith[channel] + (mood.horizon[channel] - mood.zenith[channel]) * t
        canvas[:rows, :, channel] = blue + (mood.cloud[channel] - blue) * clouds
    return canvas
