"""Solids that synthetic people are made of: elliptical cones and ellipsoids, ray cast exactly.

A solid is the image, under p -> origin + axes p, of the surface p0^2 + p1^2 + a p2^2 + b p2 + c = 0 with
low <= p2 <= high. All rays run along z (orthographic camera; x right, y down, z towards the viewer),
so a pixel's depth is one root of one quadratic. Coordinates are continuous picture pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

CONE, BALL = 0, 1


@dataclass
class SolidList:
    """Solids as they are put together: `limb` and `ball` append one; `material` is an index that the painter knows."""

    limbs: list[tuple] = field(default_factory=list)
    balls: list[tuple] = field(default_factory=list)

    def limb(self, start, end, r0: float, r1: float, material: int, lateral, flat: float = 1.0) -> None:
        """A tapered tube from `start` to `end` (3,), radius r0 to r1 along `lateral`, `flat` times that across it."""
        self.limbs.append((start, end, lateral, r0, r1, flat, material))

    def ball(self, centre, frame, radii, material: int) -> None:
        """An ellipsoid: the columns of `frame` (3, 3) are its directions, `radii` (3 numbers) its half lengths."""
        self.balls.append((centre, frame, radii, material))

    def build(self) -> Solids:
        start, end, lateral = (np.array([row[i] for row in self.limbs]) for i in range(3))
        r0, r1, flat = (np.array([row[i] for row in self.limbs]) for i in (3, 4, 5))
        along = end - start
        unit = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
        u = lateral - unit * (lateral * unit).sum(1, keepdims=True)
        u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)
        axes = np.stack([u, _cross(unit, u) * flat[:, None], along], axis=2)
        centre, frame, radii = (np.array([row[i] for row in self.balls]) for i in range(3))
        axes = np.concatenate([axes, frame * radii[:, None, :]])
        dr, one = r1 - r0, np.ones(len(self.balls))
        return Solids(
            origin=np.concatenate([start, centre]),
            axes=axes,
            a=np.concatenate([-dr * dr, one]),
            b=np.concatenate([-2 * r0 * dr, 0 * one]),
            c=np.concatenate([-r0 * r0, -one]),
            kind=np.repeat([CONE, BALL], [len(self.limbs), len(self.balls)]),
            ends=np.stack([np.concatenate([r0, one]), np.concatenate([r1, one])], axis=1),
            material=np.array([row[6] for row in self.limbs] + [row[3] for row in self.balls]),
            inverse=np.linalg.inv(axes),
        )


@dataclass
class Solids:
    """S solids: origin (S, 3), axes (S, 3, 3) by columns, a, b, c, kind, material (S,), ends (S, 2) radii."""

    origin: np.ndarray
    axes: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    kind: np.ndarray
    ends: np.ndarray
    material: np.ndarray

    inverse: np.ndarray  # of axes

    def moved(self, scale: float, shift) -> Solids:
        """The same solids under x -> scale x + shift (3,)."""
        return replace(self, origin=self.origin * scale + np.asarray(shift), axes=self.axes * scale, inverse=self.inverse / scale)

    def boxes(self) -> np.ndarray:
        """(S, 4): x0, y0, x1, y1 of each solid's silhouette, exact."""
        across = np.sqrt((self.axes[:, :2, :2] ** 2).sum(2))  # (S, 2): reach of a ring of radius 1
        near, far = self.origin[:, :2], self.origin[:, :2] + self.axes[:, :2, 2]
        low = np.minimum(near - self.ends[:, :1] * across, far - self.ends[:, 1:] * across)
        high = np.maximum(near + self.ends[:, :1] * across, far + self.ends[:, 1:] * across)
        ball = (self.kind == BALL)[:, None]
        reach = np.sqrt((self.axes[:, :2] ** 2).sum(2))
        return np.concatenate([np.where(ball, near - reach, low), np.where(ball, near + reach, high)], axis=1)

    def surface(self, points: np.ndarray) -> np.ndarray:
        """(N, S) front depth z of every solid at the points (N, 2), picture pixels; -inf where it does not cover one."""
        q, k, l, t0, t1 = self._rays()
        x = points[:, None, 0] - self.origin[:, 0]
        y = points[:, None, 1] - self.origin[:, 1]
        with np.errstate(invalid="ignore"):
            disc = q[:, 0] * x * x + q[:, 1] * x * y + q[:, 2] * y * y + q[:, 3] * x + q[:, 4] * y + q[:, 5]
            z = k[:, 0] * x + k[:, 1] * y + k[:, 2] + np.sqrt(disc) * k[:, 3]
            t = l[:, 0] * x + l[:, 1] * y + l[:, 2] * z
            inside = (t >= t0) & (t <= t1)  # false where the root is not real
        return np.where(inside, z + self.origin[:, 2], -np.inf)

    def _rays(self):
        """Coefficients, about each solid's origin, of disc(x, y), z(x, y) and p2(x, y, z), and the ends of p2."""
        m = np.stack([np.ones_like(self.a), np.ones_like(self.a), self.a], axis=1)
        ex, ey, g = self.inverse[:, :, 0], self.inverse[:, :, 1], self.inverse[:, :, 2]  # p = ex x + ey y + g z
        square = (m * g * g).sum(1)
        square = np.where(np.abs(square) < 1e-12, 1e-12, square)
        bx, by, b0 = (m * ex * g).sum(1), (m * ey * g).sum(1), 0.5 * self.b * g[:, 2]  # half the linear term in z
        cxx, cxy, cyy = (m * ex * ex).sum(1), 2 * (m * ex * ey).sum(1), (m * ey * ey).sum(1)
        cx, cy = self.b * ex[:, 2], self.b * ey[:, 2]
        disc = np.stack(
            [
                bx * bx - square * cxx, 2 * bx * by - square * cxy, by * by - square * cyy,
                2 * bx * b0 - square * cx, 2 * by * b0 - square * cy, b0 * b0 - square * self.c,
            ],
            axis=1,
        )  # fmt: skip
        depth = np.stack([-bx, -by, -b0, np.ones_like(b0)], axis=1) / square[:, None]
        ball = self.kind == BALL
        return disc, depth, self.inverse[:, 2], np.where(ball, -1.001, 0.0), np.where(ball, 1.001, 1.0)

    def cast(self, window: tuple[int, int, int, int], fine: int) -> tuple[np.ndarray, np.ndarray]:
        """Depth and index of the front solid in the window x0, y0, x1, y1, `fine` samples per pixel and direction.

        Returns: ((y1 - y0) fine, (x1 - x0) fine) float32 depth, -inf where there is nothing; the same in int16, -1.
        """
        x0, y0, x1, y1 = window
        depth = np.full(((y1 - y0) * fine, (x1 - x0) * fine), -np.inf, np.float32)
        front = np.full(depth.shape, -1, np.int16)
        spans = np.floor((self.boxes() - (x0, y0, x0, y0)) * fine).astype(int)
        spans = np.clip(spans + (0, 0, 1, 1), 0, (depth.shape[1], depth.shape[0]) * 2)
        xs = (x0 + (np.arange(depth.shape[1]) + 0.5) / fine).astype(np.float32)
        ys = (y0 + (np.arange(depth.shape[0]) + 0.5) / fine).astype(np.float32)[:, None]
        q, k, l, _, _ = (part.tolist() for part in self._rays())  # Python numbers leave float32 arrays float32
        cone, origins = (self.kind == CONE).tolist(), self.origin.tolist()
        with np.errstate(invalid="ignore"):
            for s, (left, top, right, bottom) in enumerate(spans.tolist()):
                if right <= left or bottom <= top:
                    continue
                x, y = xs[left:right] - origins[s][0], ys[top:bottom] - origins[s][1]
                (qxx, qxy, qyy, qx, qy, q0), (kx, ky, k0, ks) = q[s], k[s]
                z = (qxy * y) * x
                z += (qxx * x + qx) * x + q0
                z += (qyy * y + qy) * y
                np.sqrt(z, out=z)  # not a number where the ray misses; every comparison below is then false
                z *= ks
                z += kx * x + k0
                z += ky * y
                there = depth[top:bottom, left:right]
                won = z > there - origins[s][2]
                if cone[s]:
                    t = z * l[s][2]
                    t += l[s][0] * x
                    t += l[s][1] * y
                    won &= t >= 0
                    won &= t <= 1
                z += origins[s][2]
                np.copyto(there, z, where=won)
                np.copyto(front[top:bottom, left:right], s, where=won)
        return depth, front

    def normals(self, which: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(3, N) float32 outward unit normals at surface points (3, N) of the solids `which` (N,)."""
        shift = -np.einsum("sij,sj->si", self.inverse, self.origin)
        inner = np.concatenate([self.inverse, shift[:, :, None]], axis=2)
        inner[:, 2] *= self.a[:, None]
        inner[:, 2, 3] += 0.5 * self.b
        rows = np.einsum("sji,sjk->sik", self.inverse, inner)  # gradient of the quadric, linear in the point
        rows /= np.abs(rows).max((1, 2), keepdims=True)
        n = _apply(rows.astype(np.float32), which, points)
        return n / np.maximum(np.sqrt((n * n).sum(0)), 1e-9)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _apply(rows: np.ndarray, which: np.ndarray, points: np.ndarray) -> np.ndarray:
    out = np.empty_like(points)
    for i in range(3):
        out[i] = rows[:, i, 3][which]
        for j in range(3):
            out[i] += rows[:, i, j][which] * points[j]
    return out
