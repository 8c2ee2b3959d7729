-- A client for a zkv server: a module to copy, with a command line at its end.
--
-- One request is one msgpack map on a REQ socket, and so is the reply. Lost replies are no trouble:
-- every write carries a session and a number in it, so the same bytes may be sent again, and the
-- write still runs once. A REQ socket that is owed a reply takes no further request, so a lost reply
-- costs the socket, and the next attempt opens a fresh one. LINGER is 0, so that what a server never
-- took goes with its socket, instead of being run when nobody waits for it any more.
--
-- The endpoint may be a list with commas: those of the members of one store. A member that says
-- nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
-- has to tell that it has no other store, and no older term of the store, than was seen before.
--
-- To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
-- refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
--
-- It needs LuaJIT, libzmq, and msgpack.lua beside it.

local source = debug.getinfo(1, "S").source:sub(2)
local is_main = arg ~= nil and arg[0] == source
if is_main then package.path = (source:match "^.*/" or "./") .. "?.lua;" .. package.path end

local ffi = require "ffi"
local msgpack = require "msgpack"

ffi.cdef [[
  typedef struct { int64_t opaque[8]; } zmq_msg_t;
  typedef struct { void *socket; int fd; short events; short revents; } zmq_pollitem_t;
  void *zmq_ctx_new(void);
  void *zmq_socket(void *, int type);
  int zmq_setsockopt(void *, int option, const void *value, size_t size);
  int zmq_connect(void *, const char *endpoint);
  int zmq_close(void *);
  int zmq_send(void *, const void *bytes, size_t size, int flags);
  int zmq_poll(zmq_pollitem_t *, int count, long milliseconds);
  int zmq_msg_init(zmq_msg_t *);
  int zmq_msg_recv(zmq_msg_t *, void *, int flags);
  int zmq_msg_close(zmq_msg_t *);
  void *zmq_msg_data(zmq_msg_t *);
  size_t zmq_msg_size(const zmq_msg_t *);
  int zmq_recv(void *, void *bytes, size_t size, int flags);
  int zmq_socket_monitor(void *, const char *endpoint, int events);
  int zmq_curve_keypair(char *public, char *secret);
  int zmq_curve_public(char *public, const char *secret);
  uint8_t *zmq_z85_decode(uint8_t *bytes, const char *text);
  struct zkv_statx { uint32_t mask, block; uint64_t attributes; uint32_t links, uid, gid; uint16_t mode, rest[113]; };
  int statx(int directory, const char *path, int flags, unsigned mask, struct zkv_statx *);
  int fileno(void *file);
  struct zkv_timespec { long seconds, nanoseconds; };
  int clock_gettime(int clock, struct zkv_timespec *);
  void *dlopen(const char *file, int mode);
]]
local LIBRARY, RTLD_NOW = ffi.os == "OSX" and "libzmq.dylib" or "libzmq.so.5", 2
local zmq = ffi.load(LIBRARY)
ffi.C.dlopen(LIBRARY, RTLD_NOW) -- else LuaJIT unloads it at the end, under the feet of ZeroMQ's threads
local PAIR, REQ, LINGER, RCVHWM, POLLIN, DONTWAIT = 0, 3, 17, 24, 1, 1
local CURVE_PUBLICKEY, CURVE_SECRETKEY, CURVE_SERVERKEY = 48, 49, 50
local CUT, SUCCEEDED, PROTOCOL, AUTH = 0x0800, 0x1000, 0x2000, 0x4000 -- what becomes of handshakes
local AT_EMPTY_PATH, STATX_MODE = 0x1000, 2
local CLOCK_MONOTONIC = 1
local context = zmq.zmq_ctx_new()
local monitors = 0 -- how many there have been: each has a name of its own

local WRITES = { PUT = true, DELETE = true, TOUCH = true, INCR = true, MPUT = true, MDELETE = true, TXN = true }
local READS = { PING = true, GET = true, MGET = true, SCAN = true, COUNT = true, CHANGES = true, INFO = true }
local MOVES = { NO_REPLY = true, HANDSHAKE_FAILED = true, NOT_LEADER = true } -- another endpoint may do better
local ATTEMPTS = 3 -- for each endpoint
local PAUSE = 100 -- milliseconds before a request that was refused for now is sent again
local TRIES = 10 -- while its key is changed, a server takes each connection with one key or the other
local SHORT_PAUSE = 30 -- milliseconds between them

local zkv = { DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555" }

-- Raised for a request that was not answered with success. `applied`: false = nothing was changed,
-- nil = nobody knows. `reply` is the whole answer. The client's own codes are NO_REPLY, BAD_REPLY and
-- HANDSHAKE_FAILED.
local Error = { __tostring = function(self) return self.code .. ": " .. self.message end }

local function fail(reply)
  local applied = nil
  if reply.applied == false then applied = false end
  error(setmetatable({
    code = tostring(reply.code), message = tostring(reply.message), retry = reply.retry == true,
    applied = applied, reply = reply,
  }, Error), 0)
end

local function own_reply(code, message, retry, applied)
  return msgpack.map { ok = false, code = code, message = message, retry = retry, applied = applied }
end

local function fail_with(code, message)
  fail(own_reply(code, message, code == "NO_REPLY", msgpack.null))
end

function zkv.is_error(value) return getmetatable(value) == Error end

-- ------------------------------------------------------------------------- keys of CURVE

local function is_key(text) return #text == 40 and zmq.zmq_z85_decode(ffi.new "uint8_t[32]", text) ~= nil end

local function read_key_file(path)
  local file, problem = io.open(path, "rb")
  if not file then error(problem, 0) end
  local info = ffi.new "struct zkv_statx"
  if ffi.C.statx(ffi.C.fileno(file), "", AT_EMPTY_PATH, STATX_MODE, info) ~= 0 then error(path .. ": no mode", 0) end
  if info.mode % 64 ~= 0 then
    error(("%s: others may read it (mode %04o): chmod 600 %s"):format(path, info.mode % 4096, path), 0)
  end
  local secret = (file:read(128) or ""):match "^%s*(.-)%s*$"
  file:close()
  if not is_key(secret) then error(path .. ": not a key file: expected one line of 40 characters of Z85", 0) end
  return secret
end

local function is_tcp(endpoint) return endpoint:sub(1, 6) == "tcp://" end

-- The keys that the environment tells of; none if no endpoint needs any. One of those of the server has
-- to fit, and the first is in use. Without a file a pair is made.
local function keys_for(endpoints)
  local keys, needed = { server = {} }, false
  for _, endpoint in ipairs(endpoints) do needed = needed or is_tcp(endpoint) end
  if not needed then return keys end
  for key in (os.getenv "ZKV_SERVER_PUBLIC_KEY" or ""):gmatch "[^,%s]+" do
    if not is_key(key) then error("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85", 0) end
    table.insert(keys.server, key)
  end
  local path = os.getenv "ZKV_KEY_FILE" or ""
  if #keys.server == 0 then
    if path ~= "" then error("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY", 0) end
    return keys
  end
  local public, secret = ffi.new "char[41]", ffi.new "char[41]"
  local result
  if path ~= "" then
    ffi.copy(secret, read_key_file(path))
    result = zmq.zmq_curve_public(public, secret)
  else
    result = zmq.zmq_curve_keypair(public, secret)
  end
  if result ~= 0 then error("libzmq was built without CURVE", 0) end
  keys.public, keys.secret = ffi.string(public), ffi.string(secret)
  return keys
end

-- ------------------------------------------------------------------------- client

-- One connection, one request at a time.
local Client = {}
Client.__index = Client

-- The endpoint may be those of one store with commas between them. The timeout is in seconds, for each
-- attempt. The server need not be up; a malformed endpoint, or key,
-- is an error.
function zkv.connect(endpoint, timeout)
  local random = assert(io.open("/dev/urandom", "rb"))
  local session = random:read(16):gsub(".", function(char) return ("%02x"):format(char:byte()) end)
  random:close()
  local endpoints = {} -- the first is in use
  for item in ((endpoint or zkv.DEFAULT_ENDPOINT) .. ","):gmatch "%s*([^,]-)%s*," do table.insert(endpoints, item) end
  local self = setmetatable({
    endpoints = endpoints, timeout = timeout or 5, keys = keys_for(endpoints),
    session = session, last_id = 0, last_seq = 0,
  }, Client)
  for _ = 1, #endpoints do
    self:open()
    self:move_on {}
  end
  return self
end

local function with(fields, options)
  for name, value in pairs(options or {}) do fields[name] = value end
  return fields
end

function Client:get(key) return self:call("GET", { key = key }).value end

-- Options: ttl (seconds), if_rev, durable.
function Client:put(key, value, options)
  if value == nil then value = msgpack.null end
  return self:call("PUT", with({ key = key, value = value }, options)).rev
end

function Client:delete(key, options) return self:call("DELETE", with({ key = key }, options)).rev end

function Client:mget(keys) return self:call("MGET", { keys = keys }).values end

function Client:mput(items) return self:call("MPUT", { items = msgpack.map(with({}, items)) }).rev end

function Client:incr(key, by) return self:call("INCR", { key = key, by = by or 1 }).value end

-- Stores only if the entry has this revision; 0 = only if there is none.
function Client:cas(key, value, rev) return self:put(key, value, { if_rev = rev }) end

-- for key, value, rev in client:scan "prefix" do ... end
function Client:scan(prefix)
  return coroutine.wrap(function()
    local after = nil
    repeat
      local page = self:call("SCAN", { prefix = prefix or "", after = after })
      for _, item in ipairs(page.items) do coroutine.yield(unpack(item, 1, 3)) end
      after = page.next
    until after == msgpack.null
  end)
end

function Client:end_server() return self:call("END").rev end

-- Sends any op with its fields and returns the reply, a table.
function Client:call(op, fields)
  local request = msgpack.map(with({ op = op }, fields))
  if request.id == nil or request.id == msgpack.null then
    self.last_id = self.last_id + 1
    request.id = self.last_id
  end
  if WRITES[op] and (request.session == nil or request.session == msgpack.null) then
    self.last_seq = self.last_seq + 1
    request.session, request.seq = self.session, self.last_seq
  end
  local body = msgpack.pack(request)
  local elsewhere = READS[op] or WRITES[op] -- the rest, such as END, concerns one server
  local laps = elsewhere and #self.endpoints or 1
  local in_doubt, reply = false, nil -- in doubt: an attempt may have been applied
  for left = op == "END" and 1 or ATTEMPTS * laps, 1, -1 do
    reply = self:ask(body, request.id)
    if reply and reply.ok then return reply end
    local code = reply and reply.code or "NO_REPLY"
    local says_little = code == "DEADLINE" or code == "HANDSHAKE_FAILED" -- of an attempt before
    if reply and reply.retry ~= true and not (in_doubt and says_little) then fail(reply) end
    in_doubt = in_doubt or not reply or (reply.applied ~= false and code ~= "HANDSHAKE_FAILED")
    if elsewhere and MOVES[code] then
      -- One lap follows hints, lest it is sent in circles; the others try all.
      local leader = reply and left > (ATTEMPTS - 1) * laps and reply.leader
      self:move_on(type(leader) == "table" and leader or {})
    end
    if reply and left > 1 then zmq.zmq_poll(nil, 0, PAUSE) end
  end
  if reply and not (in_doubt and reply.applied == false) then fail(reply) end
  fail_with("NO_REPLY", ("none from %s within %g s"):format(table.concat(self.endpoints, ", "), self.timeout))
end

local function without(items, item)
  local others = {}
  for _, other in ipairs(items) do
    if other ~= item then table.insert(others, other) end
  end
  return others
end

-- Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the
-- next one.
function Client:move_on(leader)
  local left, others = self.endpoints[1], { unpack(self.endpoints, 2) }
  for _, hint in ipairs(leader) do
    local rest = without(others, hint)
    if hint ~= left and (#rest < #others or self:needs_keys(tostring(hint))) then
      others = { hint, unpack(rest) }
      break
    end
  end
  if #others == 0 then return end
  self:close()
  table.insert(others, left)
  self.endpoints = others
end

-- Whether there is an answer at this endpoint only from who has the server's key.
function Client:needs_keys(endpoint) return self.keys.server[1] ~= nil and is_tcp(endpoint) end

-- The reply, or nil if none comes in time. With several endpoints, a server is first asked whose it is.
function Client:ask(body, id)
  if not self.socket and #self.endpoints > 1 then
    local refusal = self:check()
    if refusal then
      self:close()
      return refusal
    end
  end
  return self:exchange(body, id)
end

-- Why this server is not to get a request, as a reply; nil if it is.
function Client:check()
  self.last_id = self.last_id + 1
  local where, info = self.endpoints[1], self:exchange(msgpack.pack(msgpack.map { op = "INFO", id = self.last_id }), self.last_id)
  if not info then return own_reply("NO_REPLY", where .. ": none to INFO", true, false) end
  if not info.ok then return info end
  local found = type(info.replication) == "table" and info.replication or {}
  local seen = self.seen
  if seen and (found.store ~= seen.store or found.term < seen.term) then
    return own_reply("NOT_LEADER", where .. ": it has another store, or an older term of it", true, false)
  end
  if type(found.store) == "string" and found.store ~= "" then self.seen = found end
end

function Client:exchange(body, id)
  local answer, failure = self:exchange_with_keys(body)
  if answer then return self:judge(answer, id) end
  return failure
end

-- `handshake.monitor` tells what becomes of a socket's handshake, until that has succeeded.
local function stop_monitor(socket, handshake)
  if not handshake.monitor then return end
  zmq.zmq_socket_monitor(socket, nil, 0) -- first: ZeroMQ would wait for somebody to read what it tells
  zmq.zmq_close(handshake.monitor)
  handshake.monitor = nil
end

local function start_monitor(socket)
  monitors = monitors + 1
  local name, monitor = "inproc://zkv-handshake-" .. monitors, zmq.zmq_socket(context, PAIR)
  zmq.zmq_socket_monitor(socket, name, CUT + SUCCEEDED + PROTOCOL + AUTH)
  zmq.zmq_setsockopt(monitor, RCVHWM, ffi.new("int[1]", 0), ffi.sizeof "int") -- no limit: else ZeroMQ might wait
  zmq.zmq_connect(monitor, name)
  return monitor
end

function Client:close()
  if self.socket then
    stop_monitor(self.socket, self.handshake)
    zmq.zmq_close(ffi.gc(self.socket, nil))
  end
  self.socket = nil
end

function Client:open()
  if not self.socket then
    local handshake = {}
    local socket = ffi.gc(zmq.zmq_socket(context, REQ), function(socket) -- of a client that nobody has closed
      stop_monitor(socket, handshake)
      zmq.zmq_close(socket)
    end)
    zmq.zmq_setsockopt(socket, LINGER, ffi.new("int[1]", 0), ffi.sizeof "int")
    local endpoint = self.endpoints[1]
    if self:needs_keys(endpoint) then self:secure(socket) end
    handshake.monitor = start_monitor(socket)
    if zmq.zmq_connect(socket, endpoint) ~= 0 then error("not an endpoint: " .. endpoint, 0) end
    self.socket, self.handshake = socket, handshake
  end
  return self.socket
end

function Client:secure(socket)
  local keys = self.keys
  local options = { [CURVE_SERVERKEY] = keys.server[1], [CURVE_PUBLICKEY] = keys.public, [CURVE_SECRETKEY] = keys.secret }
  for option, key in pairs(options) do
    if zmq.zmq_setsockopt(socket, option, key, #key) ~= 0 then error("libzmq was built without CURVE", 0) end
  end
end

-- A failure, as a reply, if the handshake has failed, so that nothing was sent.
function Client:failed_handshake()
  local frame, handshake = ffi.new "uint16_t[3]", self.handshake
  local event = 0
  while handshake.monitor and zmq.zmq_recv(handshake.monitor, frame, 6, DONTWAIT) >= 0 do
    event = frame[0]
    zmq.zmq_recv(handshake.monitor, frame, 6, DONTWAIT) -- the endpoint
    if event == SUCCEEDED then stop_monitor(self.socket, handshake) end
  end
  local keys, code = self:needs_keys(self.endpoints[1]), "HANDSHAKE_FAILED"
  if event == AUTH then
    return own_reply(code, "the server does not know this client: its key or, on ipc, its system user", false, false)
  elseif event == PROTOCOL then
    local why = keys and "the server does not speak CURVE" or "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY"
    return own_reply(code, why, false, false)
  elseif event == CUT and keys then -- without keys the server may be about to start
    local why = "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE"
    return own_reply(code, why, true, msgpack.null)
  end
end

local function now() -- milliseconds
  local time = ffi.new "struct zkv_timespec"
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

-- The bytes of the reply, or nil if none came in time; then the handshake's failure, with one of the
-- server's keys after the other, if that is why.
function Client:exchange_with_keys(body)
  local server, answer, failure = self.keys.server, nil, nil
  for left = TRIES, 1, -1 do
    answer, failure = self:exchange_once(body)
    if not failure or not failure.retry or left == 1 then break end
    table.insert(server, table.remove(server, 1))
    zmq.zmq_poll(nil, 0, SHORT_PAUSE)
  end
  return answer, failure
end

function Client:exchange_once(body)
  local well, socket = pcall(self.open, self)
  if not well then return nil end -- no endpoint: a server that does not lead has told of it
  local answer, failure = nil, nil
  local finish = now() + self.timeout * 1000
  local sent = zmq.zmq_send(socket, body, #body, DONTWAIT) >= 0
  repeat -- a signal cuts the poll short
    failure = self:failed_handshake()
    if failure or not sent then break end
    local items = ffi.new("zmq_pollitem_t[2]", { { socket = socket, events = POLLIN } })
    local monitor = self.handshake.monitor
    if monitor then items[1].socket, items[1].events = monitor, POLLIN end
    local left = math.ceil(math.max(0, finish - now()))
    if zmq.zmq_poll(items, monitor and 2 or 1, left) > 0 and items[0].revents ~= 0 then
      answer = self:receive(socket)
    end
  until answer or now() >= finish
  if not answer then self:close() end -- a socket that is owed a reply takes no further request
  return answer, failure
end

function Client:receive(socket)
  local message, answer = ffi.new "zmq_msg_t", nil
  zmq.zmq_msg_init(message)
  if zmq.zmq_msg_recv(message, socket, DONTWAIT) >= 0 then
    answer = ffi.string(zmq.zmq_msg_data(message), zmq.zmq_msg_size(message))
  end
  zmq.zmq_msg_close(message)
  return answer
end

-- The reply, if it is one to the request with this id. A refusal has none where the server could not read it.
function Client:judge(answer, id)
  local well, reply = pcall(msgpack.unpack, answer)
  local why = tostring(reply)
  if well and type(reply) == "table" and type(reply.ok) == "boolean" then
    if reply.id == nil and not reply.ok or reply.id ~= nil and tostring(reply.id) == tostring(id) then return reply end
    why = ("to id %s instead of %s"):format(tostring(reply.id), tostring(id))
  end
  self:close()
  fail_with("BAD_REPLY", why)
end

if not is_main then return zkv end

-- ------------------------------------------------------------------------- command line

local USAGE = "Usage: client.lua [-e ENDPOINT] [--timeout S] "
  .. "put KEY VALUE | get KEY | delete KEY | incr KEY [BY] | end | call"

local function to_hex(char) return ("%02x"):format(char:byte()) end

local function to_json(value)
  local kind, parts = type(value), {}
  if value == msgpack.null or value ~= value then return "null" end
  if kind == "string" or msgpack.is_bin(value) then
    return '"' .. tostring(value):gsub('[%c"\\]', function(char) return ("\\u%04x"):format(char:byte()) end) .. '"'
  end
  if msgpack.is_packed(value) then return to_json((value.bytes:gsub(".", to_hex))) end
  if kind ~= "table" then return (tostring(value):gsub("U?LL$", "")) end
  if not msgpack.is_map(value) then
    for i, item in ipairs(value) do parts[i] = to_json(item) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for key, item in pairs(value) do
    local name = type(key) == "string" and key or to_json(key)
    parts[#parts + 1] = to_json(name) .. ":" .. to_json(item)
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

local function show(value)
  io.write((type(value) == "string" or msgpack.is_bin(value)) and tostring(value) or to_json(value), "\n")
end

local function done(rev) io.stderr:write("OK, revision ", tostring(rev), "\n") end

-- For tests: each line of input is a request in hex, each line of output a reply.
local function drive(client)
  for line in io.lines() do
    local request = msgpack.unpack((line:gsub("%x%x", function(hex) return string.char(tonumber(hex, 16)) end)))
    local well, reply = pcall(client.call, client, request.op, request)
    if not well then reply = zkv.is_error(reply) and reply.reply or error(reply, 0) end
    io.write((msgpack.pack(reply):gsub(".", to_hex)), "\n")
    io.flush()
  end
end

local COMMANDS = {
  ["put 2"] = function(client, key, word) done(client:put(key, word == "-" and io.read "*a" or word)) end,
  ["get 1"] = function(client, key) show(client:get(key)) end,
  ["delete 1"] = function(client, key) done(client:delete(key)) end,
  ["incr 1"] = function(client, key) show(client:incr(key)) end,
  ["incr 2"] = function(client, key, by)
    local sum = by:find "^[-+]?%d+$" and tonumber(by)
    if not sum or math.abs(sum) >= 2 ^ 53 then error(by .. " is no int below 2^53", 0) end
    show(client:incr(key, sum))
  end,
  ["end 0"] = function(client) done(client:end_server()) end,
  ["call 0"] = drive,
}

local function main(words)
  local endpoint, timeout = os.getenv "ZKV_ENDPOINT", 5
  if endpoint == "" then endpoint = nil end
  while words[1] == "-e" or words[1] == "--endpoint" or words[1] == "--timeout" do
    local option, word = table.remove(words, 1), table.remove(words, 1) or ""
    if option == "--timeout" then timeout = tonumber(word) else endpoint = word end
  end
  local name = table.remove(words, 1) or ""
  local command = COMMANDS[name:lower() .. " " .. #words]
  if not command or not timeout or timeout <= 0 then error(USAGE, 0) end
  command(zkv.connect(endpoint, timeout), unpack(words))
end

local well, problem = pcall(main, { unpack(arg) })
if not well then
  io.stderr:write("client.lua: ", tostring(problem), "\n")
  local codes = { NOT_FOUND = 1, CONFLICT = 1, NO_REPLY = 3 }
  os.exit(zkv.is_error(problem) and codes[problem.code] or 2)
end
