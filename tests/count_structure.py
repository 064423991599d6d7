"""Counts how the code is built, for this package or any other: python tests/count_structure.py [FOLDER ...].

Lengths are in lines. Comments and lines of docstrings are for each 100 lines of source. Public functions have no
leading underscore, and neither do their classes.
"""
import ast
import io
import pathlib
import statistics
import sys
import tokenize

COLUMNS = ("folder", "files", "lines", "median file", "longest file", "comments/100", "docstring lines/100",
           "public documented", "public annotated", "function median/p90/longest", "first lines: words", "with a verb")


def functions(tree, public=True):
  """Yields (function, whether it is public), methods included."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield node, public and not node.name.startswith("_")
      yield from functions(node, False)
    elif isinstance(node, ast.ClassDef):
      yield from functions(node, public and not node.name.startswith("_"))
    else:
      yield from functions(node, public)


def docstrings(tree):
  """Yields the docstring nodes of a module, its classes and functions."""
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
      yield node.body[0]


def comments(text):
  """Returns the number of comments of a source text."""
  return sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))


def percent(values):
  """Returns a list of truths as a percentage."""
  return f"{statistics.mean(values):.0%}" if values else ""


def count(folder):
  """Returns the row of a folder, in the order of COLUMNS."""
  texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
  trees = [ast.parse(text) for text in texts]
  sizes = [len(text.splitlines()) for text in texts]
  all_functions = [item for tree in trees for item in functions(tree)]
  lengths = sorted(node.end_lineno - node.lineno + 1 for node, _ in all_functions)
  public = [node for node, is_public in all_functions if is_public]
  first_lines = [ast.get_docstring(node).splitlines()[0].split() for node, _ in all_functions
                 if ast.get_docstring(node)]
  doc_lines = sum(node.end_lineno - node.lineno + 1 for tree in trees for node in docstrings(tree))
  return (folder, len(texts), sum(sizes), round(statistics.median(sizes)), max(sizes),
          f"{100 * sum(map(comments, texts)) / sum(sizes):.1f}", f"{100 * doc_lines / sum(sizes):.1f}",
          percent([bool(ast.get_docstring(node)) for node in public]),
          percent([node.returns is not None for node in public]),
          f"{round(statistics.median(lengths))}/{lengths[int(0.9 * len(lengths))]}/{lengths[-1]}",
          f"{statistics.median(map(len, first_lines)):.0f}", percent([words[0].endswith("s") for words in first_lines]))


def main(folders):
  """Prints a table of a row for each folder."""
  for name, *values in zip(COLUMNS, *(count(pathlib.Path(folder)) for folder in folders)):
    print(f"{name:<28}" + "".join(f"{value!s:>16}" for value in values))


if __name__ == "__main__":
  main(sys.argv[1:] or ["sds_jax"])
