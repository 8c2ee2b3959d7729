#!/usr/bin/env ruby
# frozen_string_literal: true

# A client for a zkv server: a module to copy, with a command line at its end.
#
# One request is one msgpack map on a REQ socket, and so is the reply. Lost replies are no trouble:
# every write carries a session and a number in it, so the same bytes may be sent again, and the
# write still runs once. A REQ socket that is owed a reply takes no further request, so a lost reply
# costs the socket, and the next attempt opens a fresh one. LINGER is 0, so that what a server never
# took goes with its socket, instead of holding up the end of the program.
#
# The endpoint may be a list with commas: those of the members of one store. A member that says
# nothing, or that does not lead, is left for the next one. Before any of them gets a request, INFO
# has to tell that it has no other store, and no older term of the store, than was seen before.
#
# To tcp:// endpoints it speaks CURVE if ZKV_SERVER_PUBLIC_KEY is set. A socket whose handshake is
# refused stays silent for ever, so its monitor is asked why, until the handshake has succeeded.
#
# It needs msgpack.rb beside it, and the gems ffi-rzmq and msgpack.

require "ffi-rzmq"
require "securerandom"
require_relative "msgpack"

module Zkv
  DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
  WRITES = %w[PUT DELETE TOUCH INCR MPUT MDELETE TXN].freeze
  READS = %w[PING GET MGET SCAN COUNT CHANGES INFO].freeze
  MOVES = %w[NO_REPLY HANDSHAKE_FAILED NOT_LEADER].freeze # another endpoint may do better
  ATTEMPTS = 3 # for each endpoint
  PAUSE = 0.1 # seconds before a request that was refused for now is sent again
  TRIES = 10 # while its key is changed, a server takes each connection with one key or the other
  SHORT_PAUSE = 0.03 # seconds between them

  # A request that was not answered with success. The codes are the protocol's, and three more:
  # NO_REPLY, BAD_REPLY for an answer that breaks the protocol, and HANDSHAKE_FAILED.
  class Error < StandardError
    attr_reader :reply # the server's whole answer

    def initialize(reply)
      @reply = reply
      super("#{code}: #{reply['message']}")
    end

    def code = reply["code"]

    # Whether the same request may succeed later.
    def retry? = reply["retry"] == true

    # False: nothing was changed. Nil: nobody knows.
    def applied = reply["applied"] == false ? false : nil
  end

  # Keys of CURVE for one client, each as 40 characters of Z85.
  class Keys
    LibZMQ.attach_function :zmq_curve_public, %i[buffer_out string], :int
    LibZMQ.attach_function :zmq_z85_decode, %i[buffer_out string], :pointer

    # Those that the environment tells of; nil: there are none. Raises ArgumentError.
    def self.read
      server = ENV.fetch("ZKV_SERVER_PUBLIC_KEY", "").split(/[,\s]+/).reject(&:empty?)
      file = ENV.fetch("ZKV_KEY_FILE", "")
      unless server.all? { |key| key?(key) }
        raise ArgumentError, "ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85"
      end
      return new(server, file) unless server.empty?

      raise ArgumentError, "ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY" unless file.empty?
    end

    def self.key?(text) = text.bytesize == 40 && !LibZMQ.zmq_z85_decode(FFI::MemoryPointer.new(32), text).null?

    attr_reader :server # one of them has to fit; the first is in use

    # Without a file a pair is made.
    def initialize(server, file)
      @server = server
      if file.empty?
        @public, @secret = ZMQ::Util.curve_keypair
      else
        @secret = read_file(file)
        public_key = FFI::MemoryPointer.new(41)
        raise ArgumentError, "libzmq was built without CURVE" if LibZMQ.zmq_curve_public(public_key, @secret).negative?

        @public = public_key.read_string
      end
    end

    def secure(socket)
      keys = { ZMQ::CURVE_SERVERKEY => server.first, ZMQ::CURVE_PUBLICKEY => @public, ZMQ::CURVE_SECRETKEY => @secret }
      fine = keys.all? { |option, key| socket.setsockopt(option, key) >= 0 }
      raise ArgumentError, "libzmq was built without CURVE" unless fine
    end

    # Has the next socket use the next one of the server's keys.
    def next = server.rotate!

    def inspect = "#<Zkv::Keys public=#{@public}>" # never the secret

    private

    def read_file(path)
      File.open(path, "rb") do |file|
        mode = file.stat.mode & 0o7777
        if mode.anybits?(0o077)
          raise ArgumentError, format("%<path>s: others may read it (mode %<mode>04o): chmod 600 %<path>s", path:, mode:)
        end
        secret = file.read(128).to_s.strip
        return secret if Keys.key?(secret)
      end
      raise ArgumentError, "#{path}: not a key file: expected one line of 40 characters of Z85"
    rescue SystemCallError => e
      raise ArgumentError, "#{path}: #{e.message[/\A[^@]*[^@\s]/]}"
    end
  end

  # A REQ socket, and a monitor that tells what becomes of its handshake, until that has succeeded.
  class Connection
    CONTEXT = ZMQ::Context.new
    CUT = 0x0800 # events of handshakes
    SUCCEEDED = 0x1000
    PROTOCOL = 0x2000
    AUTH = 0x4000
    private_constant :CONTEXT, :CUT, :SUCCEEDED, :PROTOCOL, :AUTH
    @count = 0

    # A monitor's address, which no other one has.
    def self.address = FFI::MemoryPointer.from_string("inproc://zkv-handshake-#{@count += 1}")

    # First the monitor ends, then its reader goes: ZeroMQ would wait for somebody to read what it tells.
    def self.closer(socket, monitor, all: true)
      proc do
        LibZMQ.zmq_socket_monitor(socket.socket, nil, 0) if socket.socket
        monitor.close
        socket.close if all
      end
    end

    attr_reader :socket

    def initialize
      @socket = CONTEXT.socket(ZMQ::REQ)
      @monitor = CONTEXT.socket(ZMQ::PAIR)
      ObjectSpace.define_finalizer(self, Connection.closer(@socket, @monitor))
      address = Connection.address
      @socket.setsockopt(ZMQ::LINGER, 0)
      LibZMQ.zmq_socket_monitor(@socket.socket, address, CUT | SUCCEEDED | PROTOCOL | AUTH)
      @monitor.setsockopt(ZMQ::RCVHWM, 0) # no limit: else ZeroMQ might wait for us
      @monitor.connect(address.read_string)
    end

    def close = Connection.closer(@socket, @monitor).call

    # Waits for this many seconds for something to come; whether a reply has.
    def wait(seconds)
      poller = ZMQ::Poller.new
      [@socket, *(@monitor unless @succeeded)].each { |each| poller.register_readable(each) }
      poller.poll((seconds * 1000).ceil).positive? && poller.readables.include?(@socket)
    end

    # Why nothing was sent, as a reply; nil if the handshake has not failed.
    def failed_handshake(curve)
      case last_event
      when AUTH then failure "the server does not know this client: its key or, on ipc, its system user"
      when PROTOCOL
        failure curve ? "the server does not speak CURVE" : "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY"
      when CUT # ZeroMQ tries again, and without keys that may help
        why = "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE"
        failure(why).update("retry" => true, "applied" => nil) if curve
      end
    end

    private

    def last_event
      event = nil
      until @succeeded || @monitor.recv_strings(frames = [], ZMQ::DONTWAIT).negative?
        event = frames.first.unpack1("S")
        @succeeded = event == SUCCEEDED
        Connection.closer(@socket, @monitor, all: false).call if @succeeded
      end
      event
    end

    def failure(why)
      { "ok" => false, "code" => "HANDSHAKE_FAILED", "message" => why, "retry" => false, "applied" => false }
    end
  end

  # One connection, one request at a time; not to be shared by threads. The endpoint may be those of one
  # store with commas between them. The timeout is in seconds, for each attempt. Every call raises Zkv::Error, or what msgpack raises for what it cannot pack.
  class Client
    def initialize(endpoint = DEFAULT_ENDPOINT, timeout: 5.0)
      @endpoints = "#{endpoint},".split(",", -1)[0..-2].map(&:strip) # the first is in use
      @timeout = timeout
      @session = SecureRandom.hex(16)
      @last_seq = @last_id = 0
      @endpoints.size.times do
        open
        move_on(nil)
      end
    end

    # The endpoint that is in use.
    def endpoint = @endpoints.first

    def get(key) = call("GET", key: key)["value"]

    # Options: ttl (seconds), if_rev, durable.
    def put(key, value, **options) = call("PUT", key: key, value: value, **options)["rev"]

    def delete(key, **options) = call("DELETE", key: key, **options)["rev"]

    def mget(keys) = call("MGET", keys: keys)["values"]

    def mput(items, **options) = call("MPUT", items: items, **options)["rev"]

    def incr(key, by = 1) = call("INCR", key: key, by: by)["value"]

    # Stores only if the entry has this revision; 0 = only if there is none.
    def cas(key, value, rev) = put(key, value, if_rev: rev)

    # Yields key, value and revision of every key that begins with the prefix.
    def scan(prefix = "")
      return enum_for(:scan, prefix) unless block_given?

      after = nil
      loop do
        page = call("SCAN", prefix: prefix, after: after)
        page["items"].each { |key, value, rev| yield key, value, rev }
        after = page["next"] or break
      end
    end

    def end = call("END")["rev"]

    # Sends any op with its fields, by symbol or string, and returns the reply, a Hash.
    def call(op, fields = {})
      request = { "op" => op }.merge(fields.transform_keys { |name| name.is_a?(Symbol) ? name.name : name })
      request["id"] = @last_id += 1 if request["id"].nil?
      if WRITES.include?(op) && request["session"].nil?
        request.update("session" => @session, "seq" => @last_seq += 1)
      end
      send_until_answered(op, request["id"], Msgpack.pack(request))
    end

    def close
      @connection&.close
      @connection = nil
    end

    # Gives a socket the keys that this endpoint needs; whether it needs any.
    def secure(socket, endpoint)
      keys = keys_for(endpoint)
      keys&.secure(socket)
      !keys.nil?
    end

    # Has the next socket use the next one of the server's keys.
    def next_key = @keys&.next

    private

    def keys_for(endpoint)
      return unless endpoint.start_with?("tcp://")

      @keys = Keys.read unless defined?(@keys)
      @keys
    end

    def send_until_answered(op, id, body)
      elsewhere = READS.include?(op) || WRITES.include?(op) # the rest, such as END, concerns one server
      laps = elsewhere ? @endpoints.size : 1
      in_doubt = false # an attempt may have been applied
      reply = nil
      (op == "END" ? 1 : ATTEMPTS * laps).times do |attempt|
        sleep PAUSE if reply
        reply = ask(body, id)
        return reply if reply&.fetch("ok")

        refused = reply && reply["retry"] != true # now; but what became of an attempt before?
        raise Error, reply if refused && !(in_doubt && %w[DEADLINE HANDSHAKE_FAILED].include?(reply["code"]))

        in_doubt ||= reply.nil? || (reply["applied"].nil? && reply["code"] != "HANDSHAKE_FAILED")
        next unless elsewhere && (reply.nil? || MOVES.include?(reply["code"]))

        # One lap follows hints, lest it is sent in circles; the others try all.
        move_on(attempt < laps ? reply&.fetch("leader", nil) : nil)
      end
      raise Error, reply if reply && !(in_doubt && reply["applied"] == false)

      fail_with "NO_REPLY", "none from #{@endpoints.join(', ')} within #{@timeout} s", true
    end

    # Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the
    # next one.
    def move_on(leader)
      left, *others = @endpoints
      hint = leader&.map(&:to_s)&.find { |item| others.include?(item) || (item != left && keys_for(item)) }
      others = [hint, *(others - [hint])] if hint
      return if others.empty?

      close
      @endpoints = [*others, left]
    end

    # The reply; nil if none comes in time. With several endpoints, a server is first asked whose it is.
    def ask(body, id)
      return exchange(body, id) if @connection || @endpoints.size == 1

      info_id = @last_id += 1
      info = exchange(Msgpack.pack({ "op" => "INFO", "id" => info_id }), info_id)
      if info&.fetch("ok")
        found = (info["replication"] || {}).values_at("store", "term")
        if @seen.nil? || (found[0] == @seen[0] && found[1] >= @seen[1])
          @seen = found if found[0]
          return exchange(body, id)
        end
        refusal = own_reply("NOT_LEADER", "#{@endpoints[0]}: it has another store, or an older term of it", true, false)
      end
      close
      refusal || info || own_reply("NO_REPLY", "#{@endpoints[0]}: none to INFO", true, false)
    end

    def exchange(body, id)
      answer = exchange_with_keys(body)
      answer.is_a?(Array) ? judge(answer, id) : answer
    end

    # The frames of the reply; nil if none came in time; a Hash, as of a reply, if the handshake fails
    # with one of the server's keys after the other.
    def exchange_with_keys(body)
      (TRIES - 1).times do
        answer = exchange_once(body)
        return answer unless answer.is_a?(Hash) && answer["retry"]

        next_key
        sleep SHORT_PAUSE
      end
      exchange_once(body)
    end

    def exchange_once(body)
      connection = open
      sent = connection.socket.send_string(body, ZMQ::DONTWAIT) >= 0
      answer = wait(connection, sent)
    rescue ArgumentError # no endpoint: a server that does not lead has told of it
      nil
    ensure
      close unless answer.is_a?(Array) # after an exception, too: the socket is owed a reply
    end

    # Signals cut a wait short, so it goes on for the rest of the time.
    def wait(connection, sent)
      finish = now + @timeout
      until (left = finish - now).negative?
        failure = connection.failed_handshake(@curve)
        return failure if failure || !sent

        frames = []
        return frames if connection.wait(left) && connection.socket.recv_strings(frames, ZMQ::DONTWAIT) >= 0
      end
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    # The reply, if it is one to the request with this id.
    def judge(frames, id)
      reply = Msgpack.unpack(frames.join)
      ok, echo = reply.values_at("ok", "id") if reply.is_a?(Hash)
      # A refusal has no id where the server could not read it.
      return reply if [true, false].include?(ok) && (echo == id || (!ok && echo.nil?))

      bad_reply("to id #{id}: #{reply.inspect[0, 80]}")
    rescue MessagePack::UnpackError => e
      bad_reply(e.message)
    end

    def bad_reply(message)
      close
      fail_with "BAD_REPLY", message, false
    end

    def own_reply(code, message, again, applied = nil)
      { "ok" => false, "code" => code, "message" => message, "retry" => again, "applied" => applied }
    end

    def fail_with(code, message, again) = raise(Error, own_reply(code, message, again))

    def open
      @connection ||= Connection.new.tap do |connection|
        endpoint = @endpoints.first
        @curve = secure(connection.socket, endpoint)
        raise ArgumentError, "not an endpoint: #{endpoint}" if connection.socket.connect(endpoint).negative?
      end
    end
  end
end

# ------------------------------------------------------------------------- command line

if $PROGRAM_NAME == __FILE__
  require "optparse"

  def run(client, command, *words)
    case [command.downcase, *words]
    in ["put", key, value] then done client.put(key, read_value(value))
    in ["get", key] then $stdout.write(show(client.get(key)), "\n")
    in ["delete", key] then done client.delete(key)
    in ["incr", key, *by] if by.size < 2 then puts client.incr(key, *by.map { |word| Integer(word) })
    in ["end"] then done client.end
    in ["call"] then $stdin.each_line { |line| drive(client, line) }
    end
  end

  # Text from the command line, or from standard input, where it need not be text.
  def read_value(word)
    text = word == "-" ? $stdin.binmode.read.force_encoding("UTF-8") : word
    text.valid_encoding? ? text : text.b
  end

  def show(value) = value.is_a?(String) ? value : Zkv::Msgpack.to_json(value)

  # For tests: one request in hex, one reply in hex.
  def drive(client, line)
    request = Zkv::Msgpack.unpack([line.chomp].pack("H*"))
    reply = begin
      client.call(request.delete("op"), request)
    rescue Zkv::Error => e
      e.reply
    end
    puts Zkv::Msgpack.pack(reply).unpack1("H*")
    $stdout.flush
  end

  def done(rev) = warn("OK, revision #{rev}")

  def give_up(status, message)
    warn "client.rb: #{message}"
    exit status
  end

  usage = "Usage: client.rb [-e ENDPOINT] [--timeout S] put KEY VALUE | get KEY | delete KEY | " \
          "incr KEY [BY] | end | call"
  endpoint = ENV.fetch("ZKV_ENDPOINT", "")
  endpoint = Zkv::DEFAULT_ENDPOINT if endpoint.empty?
  timeout = 5.0
  begin
    OptionParser.new(usage) do |parser|
      parser.on("-e", "--endpoint ENDPOINT") { |word| endpoint = word }
      parser.on("--timeout S", Float) { |seconds| timeout = seconds }
    end.order!
    give_up 2, usage if ARGV.empty?
    words = ARGV.map { |word| word.dup.force_encoding("UTF-8") } # whatever the locale
    run(Zkv::Client.new(endpoint, timeout: timeout), *words)
  rescue NoMatchingPatternError
    give_up 2, usage
  rescue OptionParser::ParseError, ArgumentError, RangeError, MessagePack::UnpackError => e
    give_up 2, e.message
  rescue Zkv::Error => e
    give_up({ "NOT_FOUND" => 1, "CONFLICT" => 1, "NO_REPLY" => 3 }.fetch(e.code, 2), e.message)
  rescue Interrupt
    exit 130
  end
end
