module tidbit-stream

go 1.19
