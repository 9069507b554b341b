"""Tests the package with a model file: test_tidbit.py MODEL"""

import sys
import threading

import tidbit

PROMPT = "Once upon a time"


def fails(name, call, *arguments):
    try:
        call(*arguments)
    except tidbit.TidbitError as error:
        assert error.name == name and str(error), (error.name, error)
    else:
        raise AssertionError(f"expected {name}")


def main():
    path = sys.argv[1]
    assert tidbit.version() == tidbit.info("version")
    assert any(option["key"] == "session.context" for option in tidbit.info("options"))
    fails("input or output failed", tidbit.Model, path + ".missing")
    fails("unknown key", lambda: tidbit.Model(path, nothing=1))
    fails("invalid argument", lambda: tidbit.Model(path, access="other"))

    with tidbit.Model(path, access="in-place") as model:
        model.verify()
        assert model.info("vocab_size") > 256 and "architecture" in model.keys()
        ids = model.encode(PROMPT + " 😀 é")
        assert model.decode(ids) == PROMPT + " 😀 é"

        with model.session(temperature=0) as session:
            fails("no token yet", session.next)
            session.append(PROMPT)
            n = session.position
            text = "".join(session.generate(20))
            assert len(text) > 20 and session.tokens[:n] == model.encode(PROMPT)
            saved = session.save()
            session.rewind(n)
            with session.clone() as clone:
                assert "".join(clone.generate(20)) == text
            assert "".join(session.generate(20)) == text
            session.load(saved)
            assert session.position == n + 20
            fails("bad saved session", session.load, saved[:-1])
            assert len(session.logits(2)) == 2 * model.info("vocab_size")
            assert len(session.hidden_states()) == model.info("d_model")
            assert len(session.embed(PROMPT)) == model.info("d_model") and session.position == n + 20
            scores = session.score([5, 6])
            assert abs(scores[0] - session.log_probabilities()[5]) < 1e-6 and scores[1] < 0
            session.cancel()
            fails("cancelled", session.append, [1])
            session.append([1])

        with model.session(context=8, ignore_eos=1) as short:
            short.append([1, 2, 3])
            assert len(list(short.generate())) == 5
            fails("context full", short.append, [1])

        texts = [None] * 4

        def write(i):
            with model.session(seed=i, threads=1) as mine:
                mine.append(PROMPT)
                texts[i] = "".join(mine.generate(12))

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        parallel = list(texts)
        for i in range(4):
            write(i)
        assert parallel == texts and len(set(texts)) > 1
    model.close()
    fails("invalid handle", model.verify)
    print("every check of the Python package passed")


if __name__ == "__main__":
    main()
