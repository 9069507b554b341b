// Continues a text with a model file, piece by piece: stream MODEL TEXT N_TOKENS
//
//     c++ stream.cpp $(pkg-config --cflags --libs tidbit) -o stream

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "tidbit.h"

namespace {

void check(tidbit_status status) {
    if (status != TIDBIT_OK) {
        throw std::runtime_error(tidbit_last_error(nullptr));
    }
}

// A handle that frees itself.
template <auto free>
struct Free {
    template <class Handle>
    void operator()(Handle *handle) const {
        free(handle);
    }
};
using Options = std::unique_ptr<tidbit_options, Free<tidbit_options_free>>;
using Model = std::unique_ptr<tidbit_model, Free<tidbit_model_free>>;
using Session = std::unique_ptr<tidbit_session, Free<tidbit_session_free>>;

Options greedy() {
    tidbit_options *options;
    check(tidbit_options_new(&options));
    Options owned(options);
    constexpr std::string_view key = "sampling.temperature";
    check(tidbit_options_set_float(options, key.data(), key.size(), 0.0));
    return owned;
}

Model open(const std::string &path) {
    tidbit_model *model;
    check(tidbit_model_open(path.data(), path.size(), nullptr, &model));
    return Model(model);
}

Session start(const Model &model, const Options &options, const std::string &text) {
    tidbit_session *session;
    check(tidbit_session_new(model.get(), options.get(), &session));
    Session owned(session);
    check(tidbit_session_append_text(session, text.data(), text.size(), nullptr));
    return owned;
}

}  // namespace

int main(int argc, char **argv) try {
    if (argc != 4) {
        std::cerr << "usage: stream MODEL TEXT N_TOKENS\n";
        return 2;
    }
    const Model model = open(argv[1]);
    const Session session = start(model, greedy(), argv[2]);
    std::cout << argv[2];
    for (int i = 0; i < std::stoi(argv[3]); i++) {
        char piece[256];
        size_t length;
        const tidbit_status status = tidbit_session_next(session.get(), nullptr, piece, sizeof piece, &length);
        if (status != TIDBIT_END) {
            check(status);
        }
        std::cout << std::string_view(piece, length) << std::flush;
        if (status == TIDBIT_END) {
            break;
        }
    }
    std::cout << '\n';
} catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
