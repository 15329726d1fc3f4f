"""The method: recipes, caption strategies, the model that a recipe trains, and its optimizer."""
