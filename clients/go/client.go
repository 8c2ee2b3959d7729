// A client for a zkv server, with a command line at its end: copy it into your program.
//
// A request is a msgpack map in one frame on a REQ socket, and so is its reply. A REQ socket that is
// owed a reply refuses the next request for ever, so after a lost reply it is closed, and the same
// bytes go out on a fresh one: a write carries a session and a number, and runs only once. LINGER
// is 0, so nothing that was not sent holds up the end of the process.
package main

// #cgo pkg-config: libzmq
// #include <stdlib.h>
// #include <zmq.h>
// static int ready(void *socket, long ms) { // > 0 = a reply is there
//     zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
//     return zmq_poll(&item, 1, ms);
// }
// static void *connected(void *context, const char *endpoint) { // NULL = a malformed endpoint
//     int none = 0;
//     void *socket = zmq_socket(context, ZMQ_REQ);
//     if (socket == NULL) return NULL;
//     zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
//     if (zmq_connect(socket, endpoint) == 0) return socket;
//     zmq_close(socket);
//     return NULL;
// }
import "C"

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
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

// Error is a request that was not answered with success. Code is one of the protocol's, NO_REPLY, or
// BAD_REPLY. Retry: the same may succeed later. Unknown: a write may have been applied. Reply is the
// server's whole answer, nil where there is none.
type Error struct {
	Code, Message  string
	Retry, Unknown bool
	Reply          Fields
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Client is one connection, for one goroutine at a time.
type Client struct {
	endpoint, session string
	timeout           time.Duration // for each attempt
	lastID, lastSeq   int64
	socket            unsafe.Pointer
}

// Entry is a key with its value and the revision of its last write.
type Entry struct {
	Key   string
	Value interface{}
	Rev   int64
}

const attempts = 3
const pause = 100 * time.Millisecond

var context = C.zmq_ctx_new()

func isWrite(op string) bool {
	return strings.Contains(" PUT DELETE TOUCH INCR MPUT MDELETE TXN ", " "+op+" ")
}

// Connect makes a client. The server need not be up; only a malformed endpoint is an error.
func Connect(endpoint string, timeout time.Duration) (*Client, error) {
	session := make([]byte, 16)
	if _, err := rand.Read(session); err != nil {
		return nil, err
	}
	c := &Client{endpoint: endpoint, session: hex.EncodeToString(session), timeout: timeout}
	return c, c.open()
}

// Close drops the socket and whatever it owes; the next request opens a fresh one.
func (c *Client) Close() {
	if c.socket != nil {
		C.zmq_close(c.socket)
		c.socket = nil
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
	if _, given := request["session"]; isWrite(op) && !given {
		c.lastSeq++
		request["session"], request["seq"] = c.session, c.lastSeq
	}
	body, err := pack(request)
	if err != nil {
		return nil, err
	}
	lost, left := false, attempts
	if op == "END" {
		left = 1
	}
	var refused error
	for ; left > 0; left-- {
		answer := c.exchange(body)
		if answer == nil {
			c.Close()
			lost = true
			continue
		}
		reply, failure := judge(answer, request["id"])
		if failure == nil {
			return reply, nil
		}
		if failure.Code == "BAD_REPLY" {
			c.Close()
		}
		// Refused now; but what became of an attempt before, whose reply was lost?
		if !failure.Retry && !(lost && failure.Code == "DEADLINE") {
			return nil, failure
		}
		refused = failure
		time.Sleep(pause)
	}
	if lost {
		message := fmt.Sprintf("none from %s within %v; a write may have been applied", c.endpoint, c.timeout)
		return nil, &Error{Code: "NO_REPLY", Message: message, Retry: true, Unknown: true}
	}
	return nil, refused
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
	if c.socket != nil {
		return nil
	}
	endpoint := C.CString(c.endpoint)
	defer C.free(unsafe.Pointer(endpoint))
	socket, err := C.connected(context, endpoint)
	if socket == nil {
		return fmt.Errorf("endpoint %s: %w", c.endpoint, err)
	}
	c.socket = socket
	return nil
}

// exchange gives the reply's body, nil if none comes in time, and an empty one if it has many frames.
func (c *Client) exchange(body []byte) []byte {
	if c.open() != nil || C.zmq_send(c.socket, unsafe.Pointer(&body[0]), C.size_t(len(body)), C.ZMQ_DONTWAIT) < 0 {
		return nil
	}
	end := time.Now().Add(c.timeout)
	// Go's runtime interrupts system calls with signals of its own: EINTR is no failure.
	for C.ready(c.socket, C.long(time.Until(end)/time.Millisecond)+1) <= 0 {
		if time.Now().After(end) {
			return nil
		}
	}
	var message C.zmq_msg_t
	C.zmq_msg_init(&message)
	defer C.zmq_msg_close(&message)
	for C.zmq_msg_recv(&message, c.socket, C.ZMQ_DONTWAIT) < 0 {
		if time.Now().After(end) {
			return nil
		}
	}
	if C.zmq_msg_more(&message) != 0 {
		return []byte{}
	}
	return C.GoBytes(C.zmq_msg_data(&message), C.int(C.zmq_msg_size(&message)))
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
