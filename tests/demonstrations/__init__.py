"""Tests of the lecture's demonstrations: their claims on what is measured in a small form, and on data that deny them.

That a broken implementation fails was seen by breaking each in turn: labels that are not random, one training set for
all lanes, samples of one row, initial weights taken after training, a term of a closed form left out, a bound of half
its size; every one of 23 such changes in tuner/data, tuner/theory and tuner/demonstrations failed a test of its module.
"""
