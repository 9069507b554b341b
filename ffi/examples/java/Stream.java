// Continues a text with a model file, piece by piece: java -cp jna.jar Stream.java MODEL TEXT N_TOKENS
//
// Over JNA, which finds the library in -Djna.library.path.

import com.sun.jna.Library;
import com.sun.jna.Native;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.PointerByReference;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

public final class Stream {
    // Lengths (size_t) are `long` here: right on 64-bit systems.
    interface Tidbit extends Library {
        int OK = 0;
        int END = 1;

        Pointer tidbit_last_error(long[] outLength);

        int tidbit_options_new(PointerByReference outOptions);

        int tidbit_options_set_float(Pointer options, byte[] key, long keyLength, double value);

        int tidbit_options_free(Pointer options);

        int tidbit_model_open(byte[] path, long pathLength, Pointer options, PointerByReference outModel);

        int tidbit_model_free(Pointer model);

        int tidbit_session_new(Pointer model, Pointer options, PointerByReference outSession);

        int tidbit_session_append_text(Pointer session, byte[] text, long textLength, long[] outTokens);

        int tidbit_session_next(Pointer session, int[] outToken, byte[] buffer, long capacity, long[] outLength);

        int tidbit_session_free(Pointer session);
    }

    static final Tidbit LIBRARY = Native.load("tidbit", Tidbit.class);

    static void check(int status) {
        if (status != Tidbit.OK) {
            throw new IllegalStateException(LIBRARY.tidbit_last_error(null).getString(0, "UTF-8"));
        }
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    public static void main(String[] args) {
        byte[] path = utf8(args[0]), text = utf8(args[1]), key = utf8("sampling.temperature");
        PointerByReference options = new PointerByReference();
        PointerByReference model = new PointerByReference();
        PointerByReference session = new PointerByReference();
        check(LIBRARY.tidbit_options_new(options));
        check(LIBRARY.tidbit_options_set_float(options.getValue(), key, key.length, 0.0));
        check(LIBRARY.tidbit_model_open(path, path.length, null, model));
        check(LIBRARY.tidbit_session_new(model.getValue(), options.getValue(), session));
        check(LIBRARY.tidbit_session_append_text(session.getValue(), text, text.length, null));

        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        out.print(args[1]);
        byte[] piece = new byte[256];
        long[] length = new long[1];
        for (int i = 0; i < Integer.parseInt(args[2]); i++) {
            int status = LIBRARY.tidbit_session_next(session.getValue(), null, piece, piece.length, length);
            if (status != Tidbit.END) {
                check(status);
            }
            out.print(new String(piece, 0, (int) length[0], StandardCharsets.UTF_8));
            out.flush();
            if (status == Tidbit.END) {
                break;
            }
        }
        out.println();

        LIBRARY.tidbit_session_free(session.getValue());
        LIBRARY.tidbit_model_free(model.getValue());
        LIBRARY.tidbit_options_free(options.getValue());
    }
}
