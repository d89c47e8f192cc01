"""For somebody who was handed a model: is it backdoored, and can it be cleaned?

Nothing here detects or repairs. A weights file and a few images become a recipe with an imported
model and no attack, which is carried out like any other; what comes out is put into one verdict.
"""
