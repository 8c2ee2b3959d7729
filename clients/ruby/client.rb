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
# It needs msgpack.rb beside it, and the gems ffi-rzmq and msgpack.

require "ffi-rzmq"
require "securerandom"
require_relative "msgpack"

module Zkv
  DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
  WRITES = %w[PUT DELETE TOUCH INCR MPUT MDELETE TXN].freeze
  ATTEMPTS = 3
  PAUSE = 0.1 # seconds before a request that was refused for now is sent again

  # A request that was not answered with success. The codes are the protocol's, and two more:
  # NO_REPLY, and BAD_REPLY for an answer that breaks the protocol.
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

  # One connection, one request at a time; not to be shared by threads. The timeout is in seconds,
  # for each attempt. Every call raises Zkv::Error, or what msgpack raises for what it cannot pack.
  class Client
    def initialize(endpoint = DEFAULT_ENDPOINT, timeout: 5.0)
      @endpoint = endpoint
      @timeout = timeout
      @session = SecureRandom.hex(16)
      @last_seq = @last_id = 0
      open
    end

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
      @socket&.close
      @socket = nil
    end

    private

    CONTEXT = ZMQ::Context.new
    private_constant :CONTEXT

    def send_until_answered(op, id, body)
      lost = false
      reply = nil
      (op == "END" ? 1 : ATTEMPTS).times do
        sleep PAUSE if reply
        reply = exchange(body)&.then { |frames| judge(frames, id) }
        return reply if reply&.fetch("ok")

        lost ||= reply.nil?
        again = reply.nil? || reply["retry"] == true || (reply["code"] == "DEADLINE" && lost)
        raise Error, reply unless again
      end
      raise Error, reply unless lost

      fail_with "NO_REPLY", "none from #{@endpoint} within #{@timeout} s", true
    end

    # The frames of the reply, or nil if none came in time.
    def exchange(body)
      socket = open
      done = socket.send_string(body, ZMQ::DONTWAIT) >= 0 && wait(socket) &&
             socket.recv_strings(frames = [], ZMQ::DONTWAIT) >= 0
      frames if done
    ensure
      close unless done # after an exception, too: the socket is owed a reply
    end

    # Signals cut poll short, and -1 may be that: so it goes on for the rest of the time.
    def wait(socket)
      poller = ZMQ::Poller.new
      poller.register_readable(socket)
      finish = now + @timeout
      until (left = finish - now).negative?
        return true if poller.poll((left * 1000).ceil).positive?
      end
      false
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

    def fail_with(code, message, again)
      raise Error, "ok" => false, "code" => code, "message" => message, "retry" => again, "applied" => nil
    end

    def open
      @socket ||= CONTEXT.socket(ZMQ::REQ).tap do |socket|
        socket.setsockopt(ZMQ::LINGER, 0)
        raise ArgumentError, "not an endpoint: #{@endpoint}" if socket.connect(@endpoint).negative?
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
