"""Diagnosis: why the winner is as good as it is, and what would make it better, tried rather than guessed.

The winner is trained anew beside variants of itself, each with one thing changed, from the same seeds (equal initial
weights, orders and masks), all as lanes of as few packs as their signatures allow. Differences are therefore paired.
Nothing here opens the test set.
"""
