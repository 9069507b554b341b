"""Continues a text with a model file, piece by piece: stream.py MODEL TEXT N_TOKENS

Needs the package: pip install ./ffi/python
"""

import sys

import tidbit


def main() -> None:
    path, text, n_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with tidbit.Model(path) as model, model.session(temperature=0.0) as session:
        session.append(text)
        print(text, end="")
        for piece in session.generate(n_tokens):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
