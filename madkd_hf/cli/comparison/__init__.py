"""Students compared: their options, the conditions, the cells that train them, the pictures of what came out."""
