"""Plumbing that no user names: what all losses and detectors are built on.

jitted            the edge of every public function: one jit, checked hyperparameters, named errors
hyperparameters   what a hyperparameter may be, said once in the annotation of a parameter
frozen, fields    the base class of every loss, head and assigner, and the types of its fields
checks, dtypes    shapes and types of arrays, and the type that is computed in
rules             what values must be, for `checked`
devices           arrays and sums that are spread over devices
closed_form       losses whose derivative is written by hand
elementary, power, sigmoid, softmax, polynomial
                  functions whose value or gradient needs care
export, names, warn
                  `jax.export`, suggestions for misspelt names, warnings at the user's line
"""
