// Continues a text with a model file, piece by piece: Stream MODEL TEXT N_TOKENS

using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;

static class Tidbit
{
    public const int Ok = 0;
    public const int End = 1;
    const string Library = "tidbit";

    [DllImport(Library)] public static extern IntPtr tidbit_last_error(IntPtr outLength);
    [DllImport(Library)] public static extern int tidbit_options_new(out IntPtr options);
    [DllImport(Library)] public static extern int tidbit_options_set_float(IntPtr options, byte[] key, UIntPtr keyLength, double value);
    [DllImport(Library)] public static extern int tidbit_options_free(IntPtr options);
    [DllImport(Library)] public static extern int tidbit_model_open(byte[] path, UIntPtr pathLength, IntPtr options, out IntPtr model);
    [DllImport(Library)] public static extern int tidbit_model_free(IntPtr model);
    [DllImport(Library)] public static extern int tidbit_session_new(IntPtr model, IntPtr options, out IntPtr session);
    [DllImport(Library)] public static extern int tidbit_session_append_text(IntPtr session, byte[] text, UIntPtr textLength, IntPtr outTokens);
    [DllImport(Library)] public static extern int tidbit_session_next(IntPtr session, IntPtr outToken, byte[] buffer, UIntPtr capacity, out UIntPtr length);
    [DllImport(Library)] public static extern int tidbit_session_free(IntPtr session);

    public static void Check(int status)
    {
        if (status != Ok)
        {
            throw new InvalidOperationException(Marshal.PtrToStringAnsi(tidbit_last_error(IntPtr.Zero)));
        }
    }
}

static class Stream
{
    static UIntPtr Length(byte[] bytes)
    {
        return (UIntPtr)(ulong)bytes.Length;
    }

    static void Main(string[] args)
    {
        byte[] path = Encoding.UTF8.GetBytes(args[0]), text = Encoding.UTF8.GetBytes(args[1]);
        byte[] key = Encoding.UTF8.GetBytes("sampling.temperature");
        IntPtr options, model, session;
        Tidbit.Check(Tidbit.tidbit_options_new(out options));
        Tidbit.Check(Tidbit.tidbit_options_set_float(options, key, Length(key), 0.0));
        Tidbit.Check(Tidbit.tidbit_model_open(path, Length(path), IntPtr.Zero, out model));
        Tidbit.Check(Tidbit.tidbit_session_new(model, options, out session));
        Tidbit.Check(Tidbit.tidbit_session_append_text(session, text, Length(text), IntPtr.Zero));

        using (System.IO.Stream output = Console.OpenStandardOutput())
        {
            output.Write(text, 0, text.Length);
            byte[] piece = new byte[256];
            for (int i = 0; i < int.Parse(args[2]); i++)
            {
                UIntPtr length;
                int status = Tidbit.tidbit_session_next(session, IntPtr.Zero, piece, Length(piece), out length);
                if (status != Tidbit.End)
                {
                    Tidbit.Check(status);
                }
                output.Write(piece, 0, (int)length);
                output.Flush();
                if (status == Tidbit.End)
                {
                    break;
                }
            }
            output.WriteByte((byte)'\n');
        }

        Tidbit.tidbit_session_free(session);
        Tidbit.tidbit_model_free(model);
        Tidbit.tidbit_options_free(options);
    }
}
