/* A client for a zkv server: copy this header into your program. It needs cppzmq and msgpack-cxx.
 *
 * A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
 * owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
 * bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
 * is 0, so nothing that was not sent holds up the end of the process.
 *
 * Compile with -DMSGPACK_NO_BOOST, and link with -lzmq. A client is used by one thread at a time. */
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
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
 * BAD_REPLY, and BAD_VALUE, of a value that is none of the type asked for; of these three the reply
 * is empty. */
struct error : std::runtime_error {
    error(std::string code, const std::string &message, answer reply = {})
        : std::runtime_error(code + ": " + message), code(code), reply(reply) {}
    std::string code;
    answer reply;

    /* The same request may succeed later. */
    bool retry() const { return code == "NO_REPLY" || reply.is("retry", true); }
    /* Nothing was changed for certain. If not, nobody knows. */
    bool not_applied() const { return reply.is("applied", false); }
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

    /* The server need not be up. A malformed endpoint throws zmq::error_t. */
    explicit client(std::string endpoint, milliseconds timeout = milliseconds(5000))
        : endpoint_(std::move(endpoint)), timeout_(timeout), session_(random_name()) {
        open();
    }

    /* Any op with its fields. Objects point to the caller's values, which live until it returns. */
    answer call(const std::string &op, const fields &given = {}) {
        fields request = given;
        auto id = request.find("id");
        if (id == request.end() || id->second.is_nil()) {
            request["id"] = msgpack::object(++last_id_);
        }
        request["op"] = msgpack::object(op.c_str());
        if (writes().count(op) && !request.count("session")) {
            request["session"] = msgpack::object(session_.c_str());
            request["seq"] = msgpack::object(++last_seq_);
        }
        msgpack::sbuffer body;
        msgpack::pack(body, request);
        bool lost = false;
        std::optional<error> refused;
        for (int left = op == "END" ? 1 : attempts; left > 0; left--) {
            auto frame = exchange(body);
            if (!frame) {
                socket_.reset();
                lost = true;
                continue;
            }
            answer reply = read(*frame, request["id"]);
            if (reply.is("ok", true)) return reply;
            refused.emplace(reply.text("code"), reply.text("message"), reply);
            /* Refused now; but what became of an attempt before, whose reply was lost? */
            if (!refused->retry() && !(lost && refused->code == "DEADLINE")) throw *refused;
            std::this_thread::sleep_for(pause);
        }
        if (lost) throw error("NO_REPLY", "none from " + endpoint_ + "; a write may have been applied");
        throw *refused;
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
    void close() { socket_.reset(); }

private:
    static constexpr int attempts = 3;
    static constexpr milliseconds pause{100};

    static const std::set<std::string> &writes() {
        static const std::set<std::string> ops{"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"};
        return ops;
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

    void open() {
        if (socket_) return;
        zmq::socket_t socket(context_, zmq::socket_type::req);
        socket.set(zmq::sockopt::linger, 0);
        socket.connect(endpoint_);
        socket_.emplace(std::move(socket));
    }

    /* Sends a body and gives the frame that comes back; none if none comes in time. */
    std::optional<zmq::message_t> exchange(const msgpack::sbuffer &body) {
        using clock = std::chrono::steady_clock;
        open();
        if (!socket_->send(zmq::buffer(body.data(), body.size()), zmq::send_flags::dontwait)) return {};
        const auto end = clock::now() + timeout_;
        for (auto left = timeout_; left.count() >= 0;
             left = std::chrono::duration_cast<milliseconds>(end - clock::now())) {
            try {
                zmq::pollitem_t item{socket_->handle(), 0, ZMQ_POLLIN, 0};
                zmq::message_t frame;
                if (!zmq::poll(&item, 1, left)) return {};
                if (socket_->recv(frame, zmq::recv_flags::dontwait)) return frame;
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
            socket_.reset();
        } catch (const msgpack::unpack_error &) {
            socket_.reset();
        }
        throw error("BAD_REPLY", "it is no map, or has no ok, or another id");
    }

    zmq::context_t context_{1};
    std::optional<zmq::socket_t> socket_;
    std::string endpoint_;
    milliseconds timeout_; /* for each attempt */
    std::string session_;
    std::int64_t last_id_ = 0, last_seq_ = 0;
};

} // namespace zkv
