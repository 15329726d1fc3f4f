"""The method: recipes, ways to shorten captions, the model that a recipe trains, and how its steps are taken."""
