"""Matte and depth of a portrait: what stands in for a network of each, and the interface of one."""

from typing import Protocol

import cv2
import numpy as np

_ITERATIONS = 6  # of GrabCut


class Matte(Protocol):
    """Anything that separates a person from what is behind."""

    def __call__(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """RGB image (H, W, 3) uint8 and the face's box (4,) xyxy -> (H, W) bool, True on the person."""
        ...


class Depth(Protocol):
    """Anything that estimates relief."""

    def __call__(self, image: np.ndarray, mask: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Image, matte and face's box -> z (H, W) float32 in px, smaller is nearer, 0 at the silhouette."""
        ...


def grabcut_matte(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Head and shoulders by GrabCut (Rother et al. 2004), started from the proportions of a person below a face.

    Crude: hair of the backdrop's colour is lost, what is enclosed is kept. A network's matte is better; see `Matte`.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box)
    centre, face_w, face_h = (x0 + x1) / 2, x1 - x0, y1 - y0
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    head = ((x - centre) / face_w) ** 2 + ((y - (y0 + y1) / 2 + 0.08 * face_h) / face_h) ** 2
    # The neck widens to shoulders about two and a half faces wide.
    below = (y - y1) / face_h
    reach = np.clip(0.3 + 1.6 * below, 0.3, 1.45) * face_w
    body = (below > -0.1) & (np.abs(x - centre) < reach)
    core = (below > 0.25) & (np.abs(x - centre) < 0.5 * reach)
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[(head < 0.85**2) | ((below > -0.3) & (np.abs(x - centre) < 1.35 * reach + 0.2 * face_w))] = cv2.GC_PR_BGD
    labels[(head < 0.58**2) | body] = cv2.GC_PR_FGD
    labels[(head < 0.42**2) | core] = cv2.GC_FGD
    margin = max(1, round(0.02 * width))
    side = np.zeros_like(labels, bool)
    side[:, :margin] = side[:, -margin:] = side[:margin] = True
    labels[side & (y < y1) & (labels != cv2.GC_FGD)] = cv2.GC_BGD
    mask = _grabcut(image, labels)
    # The head once more by itself: what stands beside the body often has the colour of the hair.
    rows = slice(0, min(height, int(y1 + 0.1 * face_h)))
    columns = slice(max(0, int(centre - 1.2 * face_w)), min(width, int(centre + 1.2 * face_w) + 1))
    labels[head > 0.75**2] = cv2.GC_BGD
    mask[rows, columns] |= _grabcut(image[rows, columns], labels[rows, columns])
    return _one_piece(mask, centre, (y0 + y1) / 2)


def _grabcut(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    labels, behind, person = labels.copy(), np.zeros((1, 65)), np.zeros((1, 65))
    unused = (0, 0, 1, 1)  # the rectangle of its other way to begin
    cv2.setRNGSeed(0)  # its clusters start at random
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, labels, unused, behind, person, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _one_piece(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    """The component of a mask (H, W) at a point, without specks and without holes."""
    kernel = np.ones((3, 3), np.uint8)
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    _, pieces = cv2.connectedComponents(opened, connectivity=4)
    person = (pieces == pieces[int(y), int(x)]).astype(np.uint8)
    # Everything that the outside does not reach is person; the outside may come in from above and from the sides.
    outside = np.pad(1 - person, ((1, 0), (1, 1)), constant_values=1)
    _, pieces = cv2.connectedComponents(outside, connectivity=4)
    return (pieces != pieces[0, 0])[1:, 1:-1]


def inflated_depth(image: np.ndarray, mask: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Relief of the silhouette blown up like a cushion: a sine of the distance to its edge, up to half a face.

    Crude: noses and chins are flat. A network's depth is better; see `Depth`.
    """
    radius = 0.5 * float(box[2] - box[0])
    # The person goes on below the picture.
    padded = np.pad(mask.astype(np.uint8), ((1, round(radius)), (1, 1)), mode="edge")
    padded[0] = padded[:, 0] = padded[:, -1] = 0
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1 : 1 + len(mask), 1:-1]
    # An ellipse would stand upright at the edge, where its particles would come apart when seen from the side.
    height = 0.6 * radius * np.sin(np.pi / 2 * np.clip(distance / radius, 0, 1))
    return -cv2.GaussianBlur(height.astype(np.float32), (0, 0), max(0.5, 0.06 * radius))


def filled_backdrop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 without the person: what surrounds the matte, drawn into it (Telea 2004)."""
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2)
    return cv2.inpaint(image, grown, 3, cv2.INPAINT_TELEA)
