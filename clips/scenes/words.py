"""The words on signs: short, common, and different from all object names."""

SIGN_WORDS = (
    "OPEN", "SALE", "EXIT", "FREE", "NEWS", "CAFE", "ZOO", "PARK", "FARM", "SHOP", "HELP", "LOVE", "HOME", "GAME",
    "WAY", "BANK", "POOL", "GOLD", "LAKE", "NORTH", "SOUTH", "EAST", "WEST", "SLOW", "FAST", "ENTER", "PUSH", "PULL",
    "VOTE", "WIN", "NEW", "MENU", "ROOM", "TOWN", "JAZZ", "RUN", "QUIET", "LUCKY", "SUPER", "MAGIC",
)  # fmt: skip
