-- A client for a zkv server: a module to copy, with a command line at its end.
--
-- One request is one msgpack map on a REQ socket, and so is the reply. Lost replies are no trouble:
-- every write carries a session and a number in it, so the same bytes may be sent again, and the
-- write still runs once. A REQ socket that is owed a reply takes no further request, so a lost reply
-- costs the socket, and the next attempt opens a fresh one. LINGER is 0, so that what a server never
-- took goes with its socket, instead of being run when nobody waits for it any more.
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
  struct zkv_timespec { long seconds, nanoseconds; };
  int clock_gettime(int clock, struct zkv_timespec *);
  void *dlopen(const char *file, int mode);
]]
local LIBRARY, RTLD_NOW = ffi.os == "OSX" and "libzmq.dylib" or "libzmq.so.5", 2
local zmq = ffi.load(LIBRARY)
ffi.C.dlopen(LIBRARY, RTLD_NOW) -- else LuaJIT unloads it at the end, under the feet of ZeroMQ's threads
local REQ, LINGER, POLLIN, DONTWAIT = 3, 17, 1, 1
local CLOCK_MONOTONIC = 1
local context = zmq.zmq_ctx_new()

local WRITES = { PUT = true, DELETE = true, TOUCH = true, INCR = true, MPUT = true, MDELETE = true, TXN = true }
local ATTEMPTS = 3
local PAUSE = 100 -- milliseconds before a request that was refused for now is sent again

local zkv = { DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555" }

-- Raised for a request that was not answered with success. `applied`: false = nothing was changed,
-- nil = nobody knows. `reply` is the whole answer. The client's own codes are NO_REPLY and BAD_REPLY.
local Error = { __tostring = function(self) return self.code .. ": " .. self.message end }

local function fail(reply)
  local applied = nil
  if reply.applied == false then applied = false end
  error(setmetatable({
    code = tostring(reply.code), message = tostring(reply.message), retry = reply.retry == true,
    applied = applied, reply = reply,
  }, Error), 0)
end

local function fail_with(code, message)
  fail(msgpack.map {
    ok = false, code = code, message = message, retry = code == "NO_REPLY", applied = msgpack.null,
  })
end

function zkv.is_error(value) return getmetatable(value) == Error end

-- One connection, one request at a time.
local Client = {}
Client.__index = Client

-- The timeout is in seconds, for each attempt. The server need not be up; a malformed endpoint is an error.
function zkv.connect(endpoint, timeout)
  local random = assert(io.open("/dev/urandom", "rb"))
  local session = random:read(16):gsub(".", function(char) return ("%02x"):format(char:byte()) end)
  random:close()
  local self = setmetatable({
    endpoint = endpoint or zkv.DEFAULT_ENDPOINT, timeout = timeout or 5,
    session = session, last_id = 0, last_seq = 0,
  }, Client)
  self:open()
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
  local lost, reply = false, nil
  for left = op == "END" and 1 or ATTEMPTS, 1, -1 do
    local answer = self:exchange(body)
    reply = answer and self:judge(answer, request.id)
    if not reply then
      lost = true
    elseif reply.ok then
      return reply
    elseif reply.retry ~= true and not (lost and reply.code == "DEADLINE") then
      fail(reply)
    elseif left > 1 then
      zmq.zmq_poll(nil, 0, PAUSE)
    end
  end
  if not lost then fail(reply) end
  fail_with("NO_REPLY", ("none from %s within %g s"):format(self.endpoint, self.timeout))
end

function Client:close()
  if self.socket then zmq.zmq_close(ffi.gc(self.socket, nil)) end
  self.socket = nil
end

function Client:open()
  if not self.socket then
    local socket = ffi.gc(zmq.zmq_socket(context, REQ), zmq.zmq_close)
    zmq.zmq_setsockopt(socket, LINGER, ffi.new("int[1]", 0), ffi.sizeof "int")
    if zmq.zmq_connect(socket, self.endpoint) ~= 0 then error("not an endpoint: " .. self.endpoint, 0) end
    self.socket = socket
  end
  return self.socket
end

local function now() -- milliseconds
  local time = ffi.new "struct zkv_timespec"
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

-- The bytes of the reply, or nil if none came in time.
function Client:exchange(body)
  local socket = self:open()
  self.socket = nil -- until all is well: a socket that is owed a reply takes no further request
  local items = ffi.new("zmq_pollitem_t[1]", { { socket = socket, events = POLLIN } })
  local ready = 0
  local finish = now() + self.timeout * 1000
  if zmq.zmq_send(socket, body, #body, DONTWAIT) >= 0 then
    repeat -- a signal cuts the poll short
      ready = zmq.zmq_poll(items, 1, math.ceil(math.max(0, finish - now())))
    until ready > 0 or now() >= finish
  end
  local message = ffi.new "zmq_msg_t"
  zmq.zmq_msg_init(message)
  local answer = nil
  if ready > 0 and zmq.zmq_msg_recv(message, socket, DONTWAIT) >= 0 then
    answer = ffi.string(zmq.zmq_msg_data(message), zmq.zmq_msg_size(message))
    self.socket = socket
  else
    zmq.zmq_close(ffi.gc(socket, nil))
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
