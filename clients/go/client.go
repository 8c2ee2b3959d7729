// A client for a zkv server, with a command line at its end: copy it into your program.
//
// A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
// owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
// bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
// is 0, so nothing that was not sent holds up the end of the process.
//
// The endpoint may be a list with commas: those of the members of one store. A member that says
// nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
// has to tell that it has no other store, and no older term of the store, than was seen before.
//
// To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
// refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
package main

// #cgo pkg-config: libzmq
// #include <stdlib.h>
// #include <zmq.h>
// #include <string.h>
// typedef struct {
//     void *socket, *monitor; // monitor: what becomes of the handshake; NULL once it has succeeded
// } connection;
// static int ready(connection *c, long ms) { // > 0 = a reply is there
//     zmq_pollitem_t items[] = {{c->socket, 0, ZMQ_POLLIN, 0}, {c->monitor, 0, ZMQ_POLLIN, 0}};
//     return zmq_poll(items, c->monitor ? 2 : 1, ms) > 0 && items[0].revents;
// }
// static void stop_monitor(connection *c) {
//     zmq_socket_monitor(c->socket, NULL, 0); // first: nobody would read what it tells
//     if (c->monitor != NULL) zmq_close(c->monitor);
//     c->monitor = NULL;
// }
// static void disconnect(connection *c) {
//     stop_monitor(c);
//     zmq_close(c->socket);
//     c->socket = NULL;
// }
// static int failure(connection *c) { // the last event of a handshake that has not succeeded; else 0
//     unsigned char frame[6];
//     uint16_t event = 0;
//     while (c->monitor && zmq_recv(c->monitor, frame, sizeof frame, ZMQ_DONTWAIT) >= 0) {
//         memcpy(&event, frame, sizeof event);
//         zmq_recv(c->monitor, frame, sizeof frame, ZMQ_DONTWAIT); // the endpoint
//         if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) stop_monitor(c);
//     }
//     return event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED ? 0 : event;
// }
// static int monitor(connection *c, void *context, const char *name) {
//     int no_limit = 0;
//     if (zmq_socket_monitor(c->socket, name, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH
//             | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL)) return -1;
//     c->monitor = zmq_socket(context, ZMQ_PAIR);
//     if (c->monitor == NULL) return -1;
//     zmq_setsockopt(c->monitor, ZMQ_RCVHWM, &no_limit, sizeof no_limit); // else ZeroMQ might wait for us
//     return zmq_connect(c->monitor, name);
// }
// static int secure(void *socket, const char *server, const char *own_public, const char *own_secret) {
//     return zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server, 41)
//         || zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, own_public, 41)
//         || zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, own_secret, 41);
// }
// static int request_socket(connection *c, void *context) {
//     int none = 0;
//     c->socket = zmq_socket(context, ZMQ_REQ);
//     return c->socket == NULL ? -1 : zmq_setsockopt(c->socket, ZMQ_LINGER, &none, sizeof none);
// }
import "C"

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Fields of a request or a reply.
type Fields = map[string]interface{}

// Ext is a msgpack ext value. A timestamp, type -1, is a time.Time where that can hold it.
type Ext struct {
	Type int8
	Data Bin
}

// Error is a request that was not answered with success. Code is one of the protocol's, NO_REPLY,
// BAD_REPLY or HANDSHAKE_FAILED. Retry: the same may succeed later. Unknown: a write may have been
// applied. Reply is the server's whole answer, nil where there is none.
type Error struct {
	Code, Message  string
	Retry, Unknown bool
	Reply          Fields
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Client is one connection, for one goroutine at a time.
type Client struct {
	endpoints       []string // of one store; the first is in use
	store           string   // what INFO has told of it, with the newest term; "" = nothing
	term            int64
	session         string
	timeout         time.Duration // for each attempt
	lastID, lastSeq int64
	keys            keys
	connection      C.connection
}

// Entry is a key with its value and the revision of its last write.
type Entry struct {
	Key   string
	Value interface{}
	Rev   int64
}

const attempts = 3 // for each endpoint
const pause = 100 * time.Millisecond

// While its key is changed, a server takes each connection with one key or the other.
const tries = 10
const shortPause = 30 * time.Millisecond

var context = C.zmq_ctx_new()
var monitors int64 // how many there have been: each has a name of its own

const writes = "PUT DELETE TOUCH INCR MPUT MDELETE TXN"
const reads = "PING GET MGET SCAN COUNT CHANGES INFO"
const moves = "NO_REPLY HANDSHAKE_FAILED NOT_LEADER" // another endpoint may do better

func isOneOf(words, word string) bool { return strings.Contains(" "+words+" ", " "+word+" ") }

// Connect makes a client, for one endpoint, or for those of one store with commas between them. The
// server need not be up; only a malformed endpoint, or key, is an error.
func Connect(endpoint string, timeout time.Duration) (*Client, error) {
	session := make([]byte, 16)
	if _, err := rand.Read(session); err != nil {
		return nil, err
	}
	c := &Client{endpoints: strings.Split(endpoint, ","), session: hex.EncodeToString(session), timeout: timeout}
	for i, item := range c.endpoints {
		c.endpoints[i] = strings.TrimSpace(item)
	}
	var err error
	if c.keys, err = keysFor(c.endpoints); err != nil {
		return nil, err
	}
	for i := 0; i < len(c.endpoints) && err == nil; i++ {
		err = c.open()
		c.moveOn(nil)
	}
	return c, err
}

// Close drops the socket and whatever it owes; the next request opens a fresh one.
func (c *Client) Close() {
	if c.connection.socket != nil {
		C.disconnect(&c.connection)
	}
}

// Call sends any op and gives the reply. The error is an *Error, or what msgpack has to say.
func (c *Client) Call(op string, fields Fields) (Fields, error) {
	request := Fields{"op": op}
	for name, value := range fields {
		request[name] = value
	}
	if request["id"] == nil {
		c.lastID++
		request["id"] = c.lastID
	}
	write := isOneOf(writes, op)
	if _, given := request["session"]; write && !given {
		c.lastSeq++
		request["session"], request["seq"] = c.session, c.lastSeq
	}
	body, err := pack(request)
	if err != nil {
		return nil, err
	}
	// Elsewhere, too, though it may have been applied. Other ops, such as END, concern one server.
	repeatable := isOneOf(reads, op) || write && request["session"] != nil
	laps := 1
	if repeatable {
		laps = len(c.endpoints)
	}
	left := attempts * laps
	if op == "END" {
		left = 1
	}
	inDoubt := false // an attempt may have been applied
	var failure *Error
	for ; left > 0; left-- {
		var reply Fields
		if reply, failure = c.ask(body, request["id"]); failure == nil {
			return reply, nil
		}
		// Refused now; but what became of an attempt before?
		if !failure.Retry && !(inDoubt && isOneOf("DEADLINE HANDSHAKE_FAILED", failure.Code)) {
			return nil, failure
		}
		inDoubt = inDoubt || failure.Unknown && failure.Code != "HANDSHAKE_FAILED"
		if isOneOf(moves, failure.Code) && (repeatable || write && !inDoubt) {
			leader := failure.Reply["leader"]
			if left <= (attempts-1)*laps { // one lap follows hints, lest it is sent in circles; the others try all
				leader = nil
			}
			c.moveOn(leader)
		}
		if failure.Code != "NO_REPLY" {
			time.Sleep(pause)
		}
	}
	if inDoubt && !failure.Unknown {
		return nil, c.noReply()
	}
	return nil, failure
}

func (c *Client) noReply() *Error {
	endpoints := strings.Join(c.endpoints, ", ")
	message := fmt.Sprintf("none from %s within %v; a write may have been applied", endpoints, c.timeout)
	return &Error{Code: "NO_REPLY", Message: message, Retry: true, Unknown: true}
}

// moveOn goes to the server that is said to lead, if it is in the list or has to prove its key; else to
// the next one.
func (c *Client) moveOn(leader interface{}) {
	left, order := c.endpoints[0], c.endpoints[1:]
	hints, _ := leader.([]interface{})
	for _, hint := range hints {
		hint, _ := hint.(string)
		others := without(order, hint)
		if hint != left && (len(others) < len(order) || c.keys.areFor(hint)) {
			order = append([]string{hint}, others...)
			break
		}
	}
	if len(order) > 0 {
		c.Close()
		c.endpoints = append(order, left)
	}
}

func without(words []string, word string) (others []string) {
	for _, other := range words {
		if other != word {
			others = append(others, other)
		}
	}
	return others
}

// ask gives the reply to a request. With several endpoints, a server is first asked whose it is.
func (c *Client) ask(body []byte, id interface{}) (Fields, *Error) {
	if c.connection.socket == nil && len(c.endpoints) > 1 {
		if failure := c.check(); failure != nil {
			c.Close()
			return nil, failure
		}
	}
	return c.exchange(body, id)
}

// check gives the reason why this server is not to get a request.
func (c *Client) check() *Error {
	c.lastID++
	body, err := pack(Fields{"op": "INFO", "id": c.lastID})
	if err != nil {
		return &Error{Code: "BAD_REQUEST", Message: err.Error()}
	}
	info, failure := c.exchange(body, c.lastID)
	if failure != nil {
		failure.Unknown = failure.Unknown && failure.Code != "NO_REPLY" // only INFO was sent
		return failure
	}
	replication, _ := info["replication"].(Fields)
	store, _ := replication["store"].(string)
	var term int64
	if store != "" {
		term = integer(replication["term"])
	}
	if c.store != "" && (store != c.store || term < c.term) {
		message := c.endpoints[0] + ": it has another store, or an older term of it"
		return &Error{Code: "NOT_LEADER", Message: message, Retry: true}
	}
	c.store, c.term = store, term
	return nil
}

// Get gives the value of a key.
func (c *Client) Get(key string) (interface{}, error) {
	reply, err := c.Call("GET", Fields{"key": key})
	return reply["value"], err
}

// Put stores a value and gives its revision.
func (c *Client) Put(key string, value interface{}) (int64, error) {
	return c.number("rev", "PUT", Fields{"key": key, "value": value})
}

// CAS stores a value only if the key has this revision; 0 = only if it is absent.
func (c *Client) CAS(key string, value interface{}, rev int64) (int64, error) {
	return c.number("rev", "PUT", Fields{"key": key, "value": value, "if_rev": rev})
}

// Delete removes a key.
func (c *Client) Delete(key string) (int64, error) {
	return c.number("rev", "DELETE", Fields{"key": key})
}

// Incr adds to an int and gives the sum.
func (c *Client) Incr(key string, by int64) (int64, error) {
	return c.number("value", "INCR", Fields{"key": key, "by": by})
}

// MGet gives the values of many keys, nil where there is none.
func (c *Client) MGet(keys []string) ([]interface{}, error) {
	reply, err := c.Call("MGET", Fields{"keys": keys})
	values, _ := reply["values"].([]interface{})
	return values, err
}

// MPut stores many values, all or nothing.
func (c *Client) MPut(items Fields) (int64, error) {
	return c.number("rev", "MPUT", Fields{"items": items})
}

// Scan calls each for every key that begins with the prefix, in order, until it says false.
func (c *Client) Scan(prefix string, each func(Entry) bool) error {
	fields := Fields{"prefix": prefix}
	for {
		page, err := c.Call("SCAN", fields)
		if err != nil {
			return err
		}
		for _, item := range page["items"].([]interface{}) {
			parts := item.([]interface{})
			if !each(Entry{parts[0].(string), parts[1], integer(parts[2])}) {
				return nil
			}
		}
		if fields["after"] = page["next"]; fields["after"] == nil {
			return nil
		}
	}
}

// End has everything saved and the server ended.
func (c *Client) End() (int64, error) { return c.number("rev", "END", nil) }

func (c *Client) number(name, op string, fields Fields) (int64, error) {
	reply, err := c.Call(op, fields)
	if err != nil {
		return 0, err
	}
	return integer(reply[name]), nil
}

func (c *Client) open() error {
	if c.connection.socket != nil {
		return nil
	}
	name := C.CString(fmt.Sprint("inproc://zkv-handshake-", atomic.AddInt64(&monitors, 1)))
	endpoint := C.CString(c.endpoints[0])
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(endpoint))
	result, err := C.request_socket(&c.connection, context)
	if result == 0 && c.keys.areFor(c.endpoints[0]) {
		result, err = c.keys.secure(c.connection.socket)
	}
	if result == 0 {
		result, err = C.monitor(&c.connection, context, name)
	}
	if result == 0 {
		result, err = C.zmq_connect(c.connection.socket, endpoint)
	}
	if result != 0 {
		c.Close()
		return fmt.Errorf("endpoint %s: %w", c.endpoints[0], err)
	}
	return nil
}

// exchange gives the reply, or a handshake that has failed with one of the server's keys after the other.
func (c *Client) exchange(body []byte, id interface{}) (Fields, *Error) {
	for left := tries; ; left-- {
		answer, failure := c.exchangeOnce(body)
		if answer != nil {
			reply, failure := judge(answer, id)
			if failure != nil && failure.Code == "BAD_REPLY" {
				c.Close()
			}
			return reply, failure
		}
		c.Close()
		if failure == nil {
			return nil, c.noReply()
		}
		if !failure.Retry || left == 1 {
			return nil, failure
		}
		c.keys.server = append(c.keys.server[1:], c.keys.server[0])
		time.Sleep(shortPause)
	}
}

// exchangeOnce gives the reply's body, nil if none comes in time, and an empty one if it has many frames.
func (c *Client) exchangeOnce(body []byte) ([]byte, *Error) {
	if c.open() != nil {
		return nil, nil
	}
	sent := C.zmq_send(c.connection.socket, unsafe.Pointer(&body[0]), C.size_t(len(body)), C.ZMQ_DONTWAIT) >= 0
	end := time.Now().Add(c.timeout)
	var message C.zmq_msg_t
	C.zmq_msg_init(&message)
	defer C.zmq_msg_close(&message)
	// Go's runtime interrupts system calls with signals of its own: EINTR is no failure.
	for {
		if failure := c.failedHandshake(); failure != nil || !sent || time.Now().After(end) {
			return nil, failure
		}
		ready := C.ready(&c.connection, C.long(time.Until(end)/time.Millisecond)+1) > 0
		if ready && C.zmq_msg_recv(&message, c.connection.socket, C.ZMQ_DONTWAIT) >= 0 {
			break
		}
	}
	if C.zmq_msg_more(&message) != 0 {
		return []byte{}, nil
	}
	return C.GoBytes(C.zmq_msg_data(&message), C.int(C.zmq_msg_size(&message))), nil
}

// failedHandshake says why nothing was sent; nil if the handshake has not failed.
func (c *Client) failedHandshake() *Error {
	var why string
	event, keys := C.failure(&c.connection), c.keys.areFor(c.endpoints[0])
	switch {
	case event == C.ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
		why = "the server does not know this client: its key or, on ipc, its system user"
	case event == C.ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL && keys:
		why = "the server does not speak CURVE"
	case event == C.ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
		why = "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY"
	case event == C.ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL && keys: // else the server may be about to start
		why = "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE"
	default:
		return nil
	}
	goesOn := event == C.ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL // ZeroMQ tries again
	return &Error{Code: "HANDSHAKE_FAILED", Message: why, Retry: goesOn, Unknown: goesOn}
}

// ---- keys of CURVE, each as 40 characters of Z85 ----

type keys struct {
	server []string       // one of them has to fit; the first is in use
	own    *[2][41]C.char // public and secret; by a pointer, which no %v follows
}

// areFor tells if an endpoint needs the keys: then there is an answer only from who has the server's.
func (k *keys) areFor(endpoint string) bool {
	return len(k.server) > 0 && strings.HasPrefix(endpoint, "tcp://")
}

// keysFor gives the keys that the environment tells of, none if no endpoint needs any. Without a
// file a pair is made.
func keysFor(endpoints []string) (keys, error) {
	var found keys
	if !strings.Contains(","+strings.Join(endpoints, ","), ",tcp://") {
		return found, nil
	}
	for _, word := range strings.Split(os.Getenv("ZKV_SERVER_PUBLIC_KEY"), ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if !isKey(word) {
			return found, errors.New("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85")
		}
		found.server = append(found.server, word)
	}
	path := os.Getenv("ZKV_KEY_FILE")
	if len(found.server) == 0 {
		if path != "" {
			return found, errors.New("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY")
		}
		return found, nil
	}
	found.own = new([2][41]C.char)
	own := found.own
	if path == "" {
		if result, err := C.zmq_curve_keypair(&own[0][0], &own[1][0]); result != 0 {
			return found, fmt.Errorf("CURVE: %w", err)
		}
		return found, nil
	}
	secret, err := readKeyFile(path)
	if err != nil {
		return found, err
	}
	for i := range secret {
		own[1][i] = C.char(secret[i])
	}
	if result, err := C.zmq_curve_public(&own[0][0], &own[1][0]); result != 0 {
		return found, fmt.Errorf("CURVE: %w", err)
	}
	return found, nil
}

func readKeyFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: others may read it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(file, 128))
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(text))
	if !isKey(secret) {
		return "", fmt.Errorf("%s: not a key file: expected one line of 40 characters of Z85", path)
	}
	return secret, nil
}

func isKey(text string) bool {
	key := C.CString(text)
	defer C.free(unsafe.Pointer(key))
	var bytes [32]C.uint8_t
	return len(text) == 40 && C.zmq_z85_decode(&bytes[0], key) != nil
}

func (k *keys) secure(socket unsafe.Pointer) (C.int, error) {
	server := C.CString(k.server[0])
	defer C.free(unsafe.Pointer(server))
	result, err := C.secure(socket, server, &k.own[0][0], &k.own[1][0])
	return result, err
}

func judge(body []byte, id interface{}) (Fields, *Error) {
	value, err := unpack(body)
	reply, isMap := value.(Fields)
	ok, isBool := reply["ok"].(bool)
	echo := reply["id"]
	ours := reflect.DeepEqual(echo, id) || fmt.Sprint(echo) == fmt.Sprint(id) || (echo == nil && !ok)
	switch {
	case err != nil || !isMap || !isBool || !ours:
		return nil, &Error{Code: "BAD_REPLY", Message: "it is no map, or has no ok, or another id", Unknown: true}
	case ok:
		return reply, nil
	}
	retry, _ := reply["retry"].(bool)
	return nil, &Error{fmt.Sprint(reply["code"]), fmt.Sprint(reply["message"]), retry, reply["applied"] == nil, reply}
}

func integer(value interface{}) int64 {
	number := reflect.ValueOf(value)
	if number.CanUint() {
		return int64(number.Uint())
	}
	return number.Int()
}

// ---- msgpack: any map, any ext, and ints as short as can be ----

func pack(value interface{}) ([]byte, error) {
	var body bytes.Buffer
	encoder := msgpack.NewEncoder(&body)
	encoder.UseCompactInts(true)
	err := encoder.Encode(value)
	return body.Bytes(), err
}

func unpack(body []byte) (interface{}, error) {
	rest := bytes.NewReader(body)
	value, err := decode(msgpack.NewDecoder(rest))
	if err == nil && rest.Len() > 0 {
		err = errors.New("something stands behind it")
	}
	return value, err
}

func decode(d *msgpack.Decoder) (interface{}, error) {
	code, err := d.PeekCode()
	switch {
	case err != nil:
		return nil, err
	case msgpcode.IsFixedArray(code) || code == msgpcode.Array16 || code == msgpcode.Array32:
		return decodeArray(d)
	case msgpcode.IsFixedMap(code) || code == msgpcode.Map16 || code == msgpcode.Map32:
		return decodeMap(d)
	case msgpcode.IsExt(code):
		return decodeExt(d)
	}
	return d.DecodeInterface()
}

func decodeArray(d *msgpack.Decoder) (interface{}, error) {
	size, err := d.DecodeArrayLen()
	items := []interface{}{}
	for ; size > 0 && err == nil; size-- {
		var item interface{}
		item, err = decode(d)
		items = append(items, item)
	}
	return items, err
}

// decodeMap gives the first of these types that can hold the map: Fields, where all keys are text,
// map[interface{}]interface{}, and Pairs.
func decodeMap(d *msgpack.Decoder) (interface{}, error) {
	size, err := d.DecodeMapLen()
	var pairs Pairs
	texts, others, fits := Fields{}, map[interface{}]interface{}{}, true
	for ; size > 0 && err == nil; size-- {
		var pair Pair
		if pair.Key, err = decode(d); err == nil {
			pair.Value, err = decode(d)
		}
		pairs = append(pairs, pair)
		if key, ok := asKey(pair.Key); !ok {
			fits = false
		} else if text, ok := key.(string); ok {
			texts[text], others[text] = pair.Value, pair.Value
		} else {
			others[key] = pair.Value
		}
	}
	switch len(pairs) {
	case len(texts):
		return texts, err
	case len(others):
		if fits {
			return others, err
		}
	}
	return pairs, err
}

// asKey gives a value as Go's maps have it as a key: an int as an int64 (uint64 beyond that), a bin as
// a Bin, an array of n items as an [n]interface{}. False: it is a map or a NaN, or has one in it.
func asKey(value interface{}) (interface{}, bool) {
	switch value := value.(type) {
	case int8, int16, int32, uint8, uint16, uint32:
		return integer(value), true
	case uint64:
		if value <= math.MaxInt64 {
			return int64(value), true
		}
	case float32:
		return value, value == value
	case float64:
		return value, value == value
	case []byte:
		return Bin(value), true
	case []interface{}:
		array := reflect.New(reflect.ArrayOf(len(value), reflect.TypeOf(value).Elem())).Elem()
		for i, item := range value {
			key, ok := asKey(item)
			if !ok {
				return nil, false
			}
			if key != nil {
				array.Index(i).Set(reflect.ValueOf(key))
			}
		}
		return array.Interface(), true
	case Fields, map[interface{}]interface{}, Pairs:
		return nil, false
	}
	return value, true
}

// decodeExt gives a time.Time for a timestamp, and an Ext for any other ext.
func decodeExt(d *msgpack.Decoder) (interface{}, error) {
	kind, size, err := d.DecodeExtHeader()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if err := d.ReadFull(data); err != nil {
		return nil, err
	}
	var seconds, nanoseconds uint64
	switch {
	case kind == -1 && size == 4:
		seconds = uint64(binary.BigEndian.Uint32(data))
	case kind == -1 && size == 8:
		both := binary.BigEndian.Uint64(data)
		seconds, nanoseconds = both&(1<<34-1), both>>34
	case kind == -1 && size == 12:
		seconds, nanoseconds = binary.BigEndian.Uint64(data[4:]), uint64(binary.BigEndian.Uint32(data))
	default:
		return Ext{kind, Bin(data)}, nil
	}
	if nanoseconds > 999_999_999 { // time.Unix would make seconds of them
		return Ext{kind, Bin(data)}, nil
	}
	return time.Unix(int64(seconds), int64(nanoseconds)), nil
}

// Pair is a key of a map and its value.
type Pair struct{ Key, Value interface{} }

// Pairs is a map that Go's maps cannot hold: a key stands in it twice, or is a map or a NaN.
type Pairs []Pair

// EncodeMsgpack is how msgpack packs Pairs.
func (p Pairs) EncodeMsgpack(e *msgpack.Encoder) error {
	err := e.EncodeMapLen(len(p))
	for _, pair := range p {
		if err == nil {
			err = e.Encode(pair.Key)
		}
		if err == nil {
			err = e.Encode(pair.Value)
		}
	}
	return err
}

// Bin is a bin as the key of a map, which a []byte cannot be.
type Bin string

// EncodeMsgpack is how msgpack packs a Bin.
func (b Bin) EncodeMsgpack(e *msgpack.Encoder) error { return e.EncodeBytes([]byte(b)) }

// EncodeMsgpack is how msgpack packs an Ext.
func (x Ext) EncodeMsgpack(e *msgpack.Encoder) error {
	if err := e.EncodeExtHeader(x.Type, len(x.Data)); err != nil {
		return err
	}
	_, err := e.Writer().Write([]byte(x.Data))
	return err
}
