"""simdistserve's semantics kept exact, defects included where they decide the answer.

`steps` is the definition, one event per stage step with every log the reference writes; `chain`
gives the same times far faster and is what a search runs. Equality with the reference's published
outputs is tested.
"""
