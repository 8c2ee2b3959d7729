/* The command line of zkv.hpp: put, get, delete, incr, end; and call, by which tests drive it.
 *
 * Exit status: 0 done, 1 NOT_FOUND or CONFLICT, 2 usage or any other failure, 3 no answer in time. */
#include <algorithm>
#include <clocale>
#include <cstdlib>
#include <cwchar>
#include <iostream>
#include <iterator>

#include "zkv.hpp"

using words = std::vector<std::string>;

static bool is_utf8(const std::string &text) {
    std::mbstate_t state{};
    for (std::size_t at = 0, used; at < text.size(); at += used) {
        used = std::mbrtowc(nullptr, text.data() + at, text.size() - at, &state);
        if (used == 0) used = 1; /* NUL */
        if (used > text.size() - at) return false;
    }
    return true;
}

static std::int64_t put(zkv::client &client, const std::string &key, const std::string &word) {
    if (word != "-") return client.put(key, word);
    std::string data{std::istreambuf_iterator<char>(std::cin), {}};
    if (is_utf8(data)) return client.put(key, data);
    return client.put(key, std::vector<char>(data.begin(), data.end())); /* a bin */
}

static void print_value(const msgpack::object &value) {
    if (value.type == msgpack::type::STR || value.type == msgpack::type::BIN)
        std::cout.write(value.via.str.ptr, value.via.str.size) << '\n';
    else
        std::cout << value << '\n';
}

static void print_hex(const msgpack::sbuffer &packed) {
    std::string hex;
    for (std::size_t i = 0; i < packed.size(); i++) {
        auto byte = static_cast<unsigned char>(packed.data()[i]);
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    std::cout << hex << std::endl;
}

static void call_each(zkv::client &client) {
    for (std::string line; std::getline(std::cin, line);) {
        std::string bytes;
        for (std::size_t i = 0; i + 1 < line.size(); i += 2)
            bytes += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
        auto request = msgpack::unpack(bytes.data(), bytes.size());
        auto fields = request.get().as<zkv::fields>();
        auto op = fields["op"].as<std::string>();
        fields.erase("op");
        msgpack::sbuffer packed;
        try {
            msgpack::pack(packed, client.call(op, fields).fields);
        } catch (const zkv::error &error) {
            zkv::reply told = error.reply.fields;
            std::string message = error.what();
            msgpack::object applied; /* nil: nobody knows */
            if (error.not_applied()) applied = msgpack::object(false);
            if (told.empty())
                told = {{"ok", msgpack::object(false)},
                        {"code", msgpack::object(error.code.c_str())},
                        {"message", msgpack::object(message.c_str())},
                        {"retry", msgpack::object(error.retry())},
                        {"applied", applied}};
            msgpack::pack(packed, told);
        }
        print_hex(packed);
    }
}

static void run(zkv::client &client, words words) {
    if (words.empty()) words.push_back("");
    std::string command = words[0];
    std::transform(command.begin(), command.end(), command.begin(), ::tolower);
    std::int64_t rev = -1;
    if (command == "put" && words.size() == 3) {
        rev = put(client, words[1], words[2]);
    } else if (command == "get" && words.size() == 2) {
        zkv::answer reply = client.call("GET", {{"key", msgpack::object(words[1].c_str())}});
        print_value(reply["value"]);
    } else if (command == "delete" && words.size() == 2) {
        rev = client.remove(words[1]);
    } else if (command == "incr" && (words.size() == 2 || words.size() == 3)) {
        std::cout << client.incr(words[1], words.size() == 3 ? std::stoll(words[2]) : 1) << '\n';
    } else if (command == "end" && words.size() == 1) {
        rev = client.end();
    } else if (command == "call" && words.size() == 1) {
        call_each(client);
    } else {
        throw std::invalid_argument("put KEY VALUE, get KEY, delete KEY, incr KEY [BY], end, call");
    }
    if (rev >= 0) std::cerr << "OK, revision " << rev << '\n';
}

int main(int argc, char **argv) {
    words words(argv + 1, argv + argc);
    const char *variable = std::getenv("ZKV_ENDPOINT");
    std::string endpoint = variable && *variable ? variable : "tcp://127.0.0.1:5555";
    double timeout = 5;
    std::setlocale(LC_CTYPE, "C.UTF-8");
    try {
        while (words.size() > 1 && (words[0] == "-e" || words[0] == "--timeout")) {
            if (words[0] == "-e")
                endpoint = words[1];
            else
                timeout = std::stod(words[1]);
            words.erase(words.begin(), words.begin() + 2);
        }
        zkv::client client(endpoint, zkv::client::milliseconds(static_cast<long>(timeout * 1000)));
        run(client, words);
        return 0;
    } catch (const zkv::error &error) {
        std::cerr << "client: " << error.what() << '\n';
        if (error.code == "NO_REPLY") return 3;
        return error.code == "NOT_FOUND" || error.code == "CONFLICT" ? 1 : 2;
    } catch (const std::exception &error) {
        std::cerr << "client: " << error.what() << '\n';
        return 2;
    }
}
