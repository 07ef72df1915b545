"""Aerial photos and maps: 1096 pairs, the photo left. Trained at 256, used at 512 too."""

RECIPES = {
    "maps": {"task": "aerial photo to map", "direction": "AtoB"},
    "maps_aerial": {"base": "maps", "task": "map to aerial photo", "direction": "BtoA"},
}
