"""Operations on the pixels of a batch of views, the same for every loader. `recipe.py` says which."""
