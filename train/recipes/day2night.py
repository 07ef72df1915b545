"""Day to night: 17,823 pairs from 91 webcams, batch 4, 17 epochs; day left."""

RECIPES = {
    "day2night": {
        "task": "day to night",
        "batch": 4,
        "epochs": 17,
        "decay_epochs": 0,
    },
}
