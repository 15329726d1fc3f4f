"""The method: recipes, ways to shorten captions, and the model that a recipe trains."""
