"""Scores: how much a placement wastes, in integers; lower is better. A score knows neither filters nor other scores."""
