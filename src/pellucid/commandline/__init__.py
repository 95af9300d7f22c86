"""How words become the arguments of a command.

flags     the flags of a function, from its typed signature and its docstring
words     which word is a flag, a value or a positional argument
config    a YAML file or a recipe in place of flags
options   flags for the options of the layers, the objective, ... that are chosen
values    text to a value of a flag's type
bind      all of these: a function and words to a call
help      what --help prints
failures  a system's error as a sentence
"""
