/* A client for a zkv server: copy this header into your program. It needs cppzmq and msgpack-cxx.
 *
 * A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
 * owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
 * bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
 * is 0, so nothing that was not sent holds up the end of the process.
 *
 * The endpoint may be a list with commas: those of the members of one store. A member that says
 * nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
 * has to tell that it has no other store, and no older term of the store, than was seen before.
 *
 * To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
 * refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
 *
 * Compile with -DMSGPACK_NO_BOOST, and link with -lzmq. A client is used by one thread at a time. */
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <msgpack.hpp>
#include <zmq.hpp>

namespace zkv {

using fields = std::map<std::string, msgpack::object>;
using reply = std::map<std::string, msgpack::object>;

/* A reply that keeps what its objects point to. */
struct answer {
    std::shared_ptr<msgpack::object_handle> owner;
    reply fields;

    const msgpack::object &operator[](const std::string &name) const {
        static const msgpack::object nil;
        auto found = fields.find(name);
        return found == fields.end() ? nil : found->second;
    }
    std::string text(const std::string &name) const {
        const auto &value = (*this)[name];
        return value.type == msgpack::type::STR ? value.as<std::string>() : "";
    }
    bool is(const std::string &name, bool value) const {
        const auto &found = (*this)[name];
        return found.type == msgpack::type::BOOLEAN && found.via.boolean == value;
    }
};

/* A request that was not answered with success. The code is one of the protocol's, or NO_REPLY,
 * BAD_REPLY, HANDSHAKE_FAILED, and BAD_VALUE, of a value that is none of the type asked for; of these
 * four the reply is empty. */
struct error : std::runtime_error {
    error(std::string code, const std::string &message, answer reply = {})
        : std::runtime_error(code + ": " + message), code(code), reply(reply),
          retry_(code == "NO_REPLY" || reply.is("retry", true)),
          not_applied_(reply.is("applied", false)) {}
    error(std::string code, const std::string &message, bool retry, bool not_applied)
        : std::runtime_error(code + ": " + message), code(code), retry_(retry), not_applied_(not_applied) {}
    std::string code;
    answer reply;

    /* The same request may succeed later. */
    bool retry() const { return retry_; }
    /* Nothing was changed for certain. If not, nobody knows. */
    bool not_applied() const { return not_applied_; }

private:
    bool retry_, not_applied_;
};

/* Keys of CURVE, each as 40 characters of Z85: the server's, of which one has to fit, and a pair. */
struct keys {
    std::vector<std::string> server;
    std::string own_public, own_secret;

    /* Whether an endpoint needs them: then there is an answer only from who has the server's. */
    bool are_for(const std::string &endpoint) const { return !server.empty() && is_tcp(endpoint); }

    /* Those that the environment tells of; none if no endpoint needs any. What is wrong with them is a
     * std::invalid_argument. Without a file, a pair is made. */
    static keys of(const std::vector<std::string> &endpoints) {
        keys keys;
        if (std::none_of(endpoints.begin(), endpoints.end(), is_tcp)) return keys;
        const char *listed = std::getenv("ZKV_SERVER_PUBLIC_KEY"), *file = std::getenv("ZKV_KEY_FILE");
        std::istringstream words(listed ? listed : "");
        for (std::string word; std::getline(words, word, ',');) {
            word = strip(word);
            if (word.empty()) continue;
            if (!is_key(word))
                throw std::invalid_argument("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85");
            keys.server.push_back(word);
        }
        const bool has_file = file && *file;
        if (keys.server.empty() && has_file)
            throw std::invalid_argument("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY");
        if (keys.server.empty()) return keys;
        char pair[2][41];
        if (has_file) std::strcpy(pair[1], read(file).c_str());
        if (has_file ? zmq_curve_public(pair[0], pair[1]) : zmq_curve_keypair(pair[0], pair[1])) throw zmq::error_t();
        keys.own_public = pair[0];
        keys.own_secret = pair[1];
        return keys;
    }

    static std::string strip(const std::string &text) {
        const char *spaces = " \t\r\n";
        auto begin = text.find_first_not_of(spaces);
        return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(spaces) + 1 - begin);
    }

private:
    static bool is_tcp(const std::string &endpoint) { return endpoint.rfind("tcp://", 0) == 0; }
    static bool is_key(const std::string &text) {
        std::uint8_t bytes[32];
        return text.size() == 40 && zmq_z85_decode(bytes, text.c_str());
    }
    static std::string read(const std::string &path) {
        std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "r"), std::fclose);
        struct stat info;
        char text[128];
        if (!file || fstat(fileno(file.get()), &info)) throw std::invalid_argument(path + ": " + std::strerror(errno));
        if (info.st_mode & 077) throw std::invalid_argument(path + ": others may read it: chmod 600 " + path);
        std::string line = strip({text, std::fread(text, 1, sizeof text, file.get())});
        if (is_key(line)) return line;
        throw std::invalid_argument(path + ": not a key file: expected one line of 40 characters of Z85");
    }
};

/* Whether a map in the value has a key twice: a std::map would keep one of them, and lose the other. */
inline bool has_duplicate_keys(const msgpack::object &value) {
    std::set<std::string> keys;
    const auto &array = value.via.array;
    const auto &map = value.via.map;
    for (std::uint32_t i = 0; value.type == msgpack::type::ARRAY && i < array.size; i++)
        if (has_duplicate_keys(array.ptr[i])) return true;
    for (std::uint32_t i = 0; value.type == msgpack::type::MAP && i < map.size; i++) {
        msgpack::sbuffer key; /* in which 1 and 1.0 are the same, as in a map of double */
        msgpack::pack(key, map.ptr[i].key);
        if (!keys.emplace(key.data(), key.size()).second) return true;
        if (has_duplicate_keys(map.ptr[i].key) || has_duplicate_keys(map.ptr[i].val)) return true;
    }
    return false;
}

/* A key with its value and the revision of its last write; 0 = there is none. */
template <typename Value> struct entry {
    std::string key;
    std::int64_t rev;
    answer owner;
    msgpack::object packed; /* any value, with all that msgpack has; as long as the entry lives */

    /* The value. BAD_VALUE where it is no Value: so one entry fails, and the others do not. */
    Value value() const {
        std::string reason = "it is of another type";
        try {
            if (!has_duplicate_keys(packed)) return packed.as<Value>();
            reason = "a map has a key twice";
        } catch (const std::bad_cast &) {
        }
        throw error("BAD_VALUE", "the value of '" + key + "': " + reason);
    }
};

class client {
public:
    using milliseconds = std::chrono::milliseconds;

    /* For one endpoint, or for those of one store with commas between them. The server need not be up.
     * A malformed endpoint throws zmq::error_t, a bad key std::invalid_argument. */
    explicit client(const std::string &endpoint, milliseconds timeout = milliseconds(5000))
        : endpoints_(split(endpoint)), keys_(keys::of(endpoints_)), timeout_(timeout), session_(random_name()) {
        for (std::size_t left = endpoints_.size(); left > 0; left--) {
            open();
            move_on({});
        }
    }

    /* Any op with its fields. Objects point to the caller's values, which live until it returns. */
    answer call(const std::string &op, const fields &given = {}) {
        fields request = given;
        auto id = request.find("id");
        if (id == request.end() || id->second.is_nil()) {
            request["id"] = msgpack::object(++last_id_);
        }
        request["op"] = msgpack::object(op.c_str());
        const bool write = is_one_of(op, {"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"});
        if (write && !request.count("session")) {
            request["session"] = msgpack::object(session_.c_str());
            request["seq"] = msgpack::object(++last_seq_);
        }
        msgpack::sbuffer body;
        msgpack::pack(body, request);
        /* Elsewhere, too, though it may have been applied. Other ops, such as END, concern one server. */
        const bool repeatable = is_one_of(op, {"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"}) ||
                                (write && !request["session"].is_nil());
        const std::size_t laps = repeatable ? endpoints_.size() : 1, most = op == "END" ? 1 : attempts * laps;
        bool in_doubt = false; /* an attempt may have been applied */
        for (std::size_t attempt = 1;; attempt++) {
            try {
                return ask_member(body, request["id"]);
            } catch (const error &failure) {
                /* Refused now; but what became of an attempt before? */
                if (!failure.retry() && !(in_doubt && is_one_of(failure.code, {"DEADLINE", "HANDSHAKE_FAILED"}))) throw;
                in_doubt = in_doubt || (!failure.not_applied() && failure.code != "HANDSHAKE_FAILED");
                /* Another endpoint may do better. One lap follows hints, lest it is sent in circles. */
                if (is_one_of(failure.code, {"NO_REPLY", "HANDSHAKE_FAILED", "NOT_LEADER"}) &&
                    (repeatable || (write && !in_doubt)))
                    move_on(attempt <= laps ? failure.reply["leader"] : msgpack::object());
                if (attempt == most && in_doubt && failure.not_applied()) throw no_reply();
                if (attempt == most) throw;
                if (failure.code != "NO_REPLY") std::this_thread::sleep_for(pause);
            }
        }
    }

    template <typename Value> Value get(const std::string &key) {
        answer reply = call("GET", {{"key", text(key)}});
        return entry<Value>{key, rev(reply), reply, reply["value"]}.value();
    }
    /* Stores a value and gives its revision. */
    template <typename Value> std::int64_t put(const std::string &key, const Value &value) {
        msgpack::zone zone;
        return rev(call("PUT", {{"key", text(key)}, {"value", msgpack::object(value, zone)}}));
    }
    /* Stores a value only if the key has this revision; 0 = only if it is absent. */
    template <typename Value>
    std::int64_t cas(const std::string &key, const Value &value, std::int64_t if_rev) {
        msgpack::zone zone;
        return rev(call("PUT", {{"key", text(key)},
                                {"value", msgpack::object(value, zone)},
                                {"if_rev", msgpack::object(if_rev)}}));
    }
    std::int64_t remove(const std::string &key) { return rev(call("DELETE", {{"key", text(key)}})); }
    /* Adds to an int and gives the sum. */
    std::int64_t incr(const std::string &key, std::int64_t by = 1) {
        return call("INCR", {{"key", text(key)}, {"by", msgpack::object(by)}})["value"].as<std::int64_t>();
    }
    /* The entries of many keys in their order; their revision is 0 where there is none. */
    template <typename Value> std::vector<entry<Value>> mget(const std::vector<std::string> &keys) {
        msgpack::zone zone;
        answer reply = call("MGET", {{"keys", msgpack::object(keys, zone)}});
        auto revs = reply["revs"].as<std::vector<std::int64_t>>();
        std::vector<entry<Value>> found;
        for (std::size_t i = 0; i < keys.size(); i++) {
            found.push_back({keys[i], revs.at(i), reply, reply["values"].via.array.ptr[i]});
        }
        return found;
    }
    /* Stores many values, all or nothing. */
    template <typename Value> std::int64_t mput(const std::map<std::string, Value> &items) {
        msgpack::zone zone;
        return rev(call("MPUT", {{"items", msgpack::object(items, zone)}}));
    }
    /* Gives an entry for every key that begins with the prefix to `each`, in order. */
    template <typename Value, typename Each> void scan(const std::string &prefix, Each each) {
        answer page;
        msgpack::object after;
        do {
            page = call("SCAN", {{"prefix", text(prefix)}, {"after", after}});
            for (const auto &item : page["items"].as<std::vector<std::vector<msgpack::object>>>()) {
                each(entry<Value>{item[0].as<std::string>(), item[2].as<std::int64_t>(), page, item[1]});
            }
            after = page["next"];
        } while (!after.is_nil());
    }
    /* Has everything saved and the server ended. */
    std::int64_t end() { return rev(call("END")); }

    /* Drops the socket and whatever it owes; the next request opens a fresh one. */
    void close() { connection_.reset(); }

private:
    static constexpr std::size_t attempts = 3; /* for each endpoint */
    static constexpr milliseconds pause{100};
    /* While its key is changed, a server takes each connection with one key or the other. */
    static constexpr int tries = 10;
    static constexpr milliseconds short_pause{30};

    static bool is_one_of(const std::string &word, std::initializer_list<const char *> words) {
        return std::find(words.begin(), words.end(), word) != words.end();
    }
    static std::vector<std::string> split(const std::string &list) {
        std::vector<std::string> parts;
        std::istringstream words(list + ",");
        for (std::string word; std::getline(words, word, ',');) parts.push_back(keys::strip(word));
        return parts;
    }
    static std::string random_name() {
        std::random_device random;
        std::string name;
        for (int i = 0; i < 32; i++) name += "0123456789abcdef"[random() & 15];
        return name;
    }
    static msgpack::object text(const std::string &key) {
        msgpack::object object;
        object.type = msgpack::type::STR;
        object.via.str = {static_cast<std::uint32_t>(key.size()), key.data()};
        return object;
    }
    static std::int64_t rev(const answer &reply) { return reply["rev"].as<std::int64_t>(); }

    /* A socket, and a monitor that tells what becomes of its handshake, until that has succeeded. */
    struct connection {
        zmq::socket_t socket;
        std::optional<zmq::socket_t> monitor;

        connection(zmq::context_t &context, const std::string &name)
            : socket(context, zmq::socket_type::req), monitor(zmq::socket_t(context, zmq::socket_type::pair)) {
            socket.set(zmq::sockopt::linger, 0);
            if (zmq_socket_monitor(socket.handle(), name.c_str(), handshake)) throw zmq::error_t();
            monitor->set(zmq::sockopt::rcvhwm, 0); /* no limit: else ZeroMQ might wait for us */
            monitor->connect(name);
        }
        ~connection() { stop_monitor(); }
        void stop_monitor() {
            zmq_socket_monitor(socket.handle(), nullptr, 0); /* first: nobody would read what it tells */
            monitor.reset();
        }
    };

    error no_reply() const {
        std::string all;
        for (const auto &endpoint : endpoints_) all += (all.empty() ? "" : ", ") + endpoint;
        return error("NO_REPLY", "none from " + all + "; a write may have been applied");
    }

    /* Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the
     * next one. */
    void move_on(const msgpack::object &leader) {
        const std::string left = endpoints_[0];
        std::rotate(endpoints_.begin(), endpoints_.begin() + 1, endpoints_.end());
        for (std::uint32_t i = 0; leader.type == msgpack::type::ARRAY && i < leader.via.array.size; i++) {
            const auto &item = leader.via.array.ptr[i];
            const auto hint = item.type == msgpack::type::STR ? item.as<std::string>() : left;
            const auto found = std::find(endpoints_.begin(), endpoints_.end(), hint);
            if (hint == left || (found == endpoints_.end() && !keys_.are_for(hint))) continue;
            if (found != endpoints_.end()) endpoints_.erase(found);
            endpoints_.insert(endpoints_.begin(), hint);
            break;
        }
        if (endpoints_.size() > 1) close();
    }

    /* One attempt. Of several servers, one is first asked whose it is. */
    answer ask_member(const msgpack::sbuffer &body, const msgpack::object &id) {
        if (connection_ || endpoints_.size() == 1) return ask(body, id);
        try {
            check();
        } catch (const error &) {
            close();
            throw;
        }
        return ask(body, id);
    }

    /* Throws why this server is not to get a request. */
    void check() {
        const std::string op = "INFO";
        const msgpack::object id(++last_id_);
        msgpack::sbuffer body;
        msgpack::pack(body, fields{{"op", text(op)}, {"id", id}});
        answer info;
        try {
            info = ask(body, id);
        } catch (const error &failure) {
            if (failure.code != "NO_REPLY") throw;
            throw error("NO_REPLY", endpoints_[0] + ": none to INFO", true, true);
        }
        const answer replication{info.owner, info["replication"].type == msgpack::type::MAP
                                                 ? info["replication"].as<reply>() : reply{}};
        const std::string store = replication.text("store");
        const std::int64_t term = replication["term"].is_nil() ? 0 : replication["term"].as<std::int64_t>();
        if (!store_.empty() && (store != store_ || term < term_))
            throw error("NOT_LEADER", endpoints_[0] + ": it has another store, or an older term of it", true, true);
        store_ = store;
        term_ = term;
    }

    answer ask(const msgpack::sbuffer &body, const msgpack::object &id) {
        std::optional<error> failure;
        auto frame = exchange(body, failure);
        if (!frame) throw failure ? *failure : no_reply();
        answer reply = read(*frame, id);
        if (reply.is("ok", true)) return reply;
        throw error(reply.text("code"), reply.text("message"), reply);
    }

    void open() {
        if (connection_) return;
        auto name = "inproc://zkv-handshake-" + std::to_string(opened_++);
        auto fresh = std::make_unique<connection>(context_, name);
        if (keys_.are_for(endpoints_[0])) {
            fresh->socket.set(zmq::sockopt::curve_serverkey, keys_.server[key_]);
            fresh->socket.set(zmq::sockopt::curve_publickey, keys_.own_public);
            fresh->socket.set(zmq::sockopt::curve_secretkey, keys_.own_secret);
        }
        fresh->socket.connect(endpoints_[0]);
        connection_ = std::move(fresh);
    }

    /* Why the handshake has failed, so that nothing was sent; none if it has not. */
    std::optional<error> failed_handshake() {
        zmq::message_t frame, endpoint;
        std::uint16_t event = 0;
        auto &monitor = connection_->monitor;
        while (monitor && monitor->recv(frame, zmq::recv_flags::dontwait)) {
            std::memcpy(&event, frame.data(), sizeof event);
            (void)monitor->recv(endpoint, zmq::recv_flags::dontwait);
            if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) connection_->stop_monitor();
        }
        const char *code = "HANDSHAKE_FAILED";
        const bool keys = keys_.are_for(endpoints_[0]);
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            return error(code, "the server does not know this client: its key or, on ipc, its system user", false, true);
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
            return error(code, keys ? "the server does not speak CURVE"
                                    : "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY", false, true);
        /* ZeroMQ goes on trying. Without keys that may be a server about to start. */
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL && keys)
            return error(code, "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE", true, false);
        return {};
    }

    /* Sends a body and gives the frame that comes back. None if none comes in time, or if the
     * handshake fails with one of the server's keys after the other; then `failure` tells why. */
    std::optional<zmq::message_t> exchange(const msgpack::sbuffer &body, std::optional<error> &failure) {
        for (int left = tries;; left--) {
            auto frame = exchange_once(body, failure);
            if (frame) return frame;
            close();
            if (!failure || !failure->retry() || left == 1) return {};
            key_ = (key_ + 1) % keys_.server.size();
            std::this_thread::sleep_for(short_pause);
        }
    }

    std::optional<zmq::message_t> exchange_once(const msgpack::sbuffer &body, std::optional<error> &failure) {
        using clock = std::chrono::steady_clock;
        try {
            open();
        } catch (const zmq::error_t &) { /* no endpoint: a server that does not lead has told of it */
            return {};
        }
        auto &[socket, monitor] = *connection_;
        const bool sent = socket.send(zmq::buffer(body.data(), body.size()), zmq::send_flags::dontwait).has_value();
        const auto end = clock::now() + timeout_;
        for (auto left = timeout_; left.count() >= 0;
             left = std::chrono::duration_cast<milliseconds>(end - clock::now())) {
            try {
                if ((failure = failed_handshake()) || !sent) return {};
                zmq::pollitem_t items[]{{socket.handle(), 0, ZMQ_POLLIN, 0},
                                        {monitor ? monitor->handle() : nullptr, 0, ZMQ_POLLIN, 0}};
                zmq::message_t frame;
                if (!zmq::poll(items, monitor ? 2 : 1, left)) return {};
                if (socket.recv(frame, zmq::recv_flags::dontwait)) return frame;
            } catch (const zmq::error_t &interrupted) {
                if (interrupted.num() != EINTR) throw; /* else by a signal: wait for the rest */
            }
        }
        return {};
    }

    answer read(const zmq::message_t &frame, const msgpack::object &id) {
        try {
            answer reply;
            std::size_t offset = 0;
            reply.owner = std::make_shared<msgpack::object_handle>(
                msgpack::unpack(frame.data<char>(), frame.size(), offset));
            reply.fields = reply.owner->get().as<zkv::reply>();
            bool ok = reply["ok"].as<bool>();
            bool ours = reply["id"] == id || (!ok && reply["id"].is_nil());
            if (!ours || offset != frame.size() || frame.more()) throw msgpack::type_error();
            return reply;
        } catch (const std::bad_cast &) {
            close();
        } catch (const msgpack::unpack_error &) {
            close();
        }
        throw error("BAD_REPLY", "it is no map, or has no ok, or another id");
    }

    static constexpr int handshake = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                                     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;

    std::vector<std::string> endpoints_; /* of one store; the first is in use */
    std::string store_;                  /* what INFO has told of it, with the newest term; "" = nothing */
    std::int64_t term_ = 0;
    keys keys_;
    std::size_t key_ = 0; /* that of the server which is in use */
    zmq::context_t context_{1};
    std::unique_ptr<connection> connection_;
    std::uint64_t opened_ = 0;
    milliseconds timeout_; /* for each attempt */
    std::string session_;
    std::int64_t last_id_ = 0, last_seq_ = 0;
};

} // namespace zkv
