"""The semantic classes of the built-in scenes. A class is given by its number, an index into ``CLASSES``."""

CLASSES = tuple(
    "wall floor ceiling window door picture rug table chair sofa bed shelf cupboard lamp plant ball box book vase "
    "screen".split()
)
WALL, FLOOR, CEILING, WINDOW, DOOR, PICTURES, RUG, TABLE, CHAIR, SOFA = range(10)
BED, SHELF, CUPBOARD, LAMP, PLANT, BALL, BOX, BOOK, VASE, SCREEN = range(10, len(CLASSES))
