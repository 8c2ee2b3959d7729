#!/usr/bin/env perl

# A client for a zkv server: packages to copy, with a command line at their end.
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
# It needs msgpack.pl beside it, and ZMQ::FFI.

use v5.20;
use warnings;
use File::Basename qw(dirname);

require(dirname(__FILE__) . '/msgpack.pl');

# A request that was not answered with success. The client's own codes are NO_REPLY, BAD_REPLY and HANDSHAKE_FAILED.
package Zkv::Error {
    use overload '""' => sub { "$_[0]{code}: $_[0]{message}" }, fallback => 1;

    sub throw {
        my ($class, $reply) = @_;
        my %error = map { $_ => $reply->{$_} // '' } qw(code message);
        $error{retry}   = !!$reply->{retry};                       # the same request may succeed later
        $error{applied} = defined $reply->{applied} ? !1 : undef;  # false: it changed nothing; undef: nobody knows
        die bless {%error, reply => $reply}, $class;               # reply: the whole answer
    }
}

# Keys of CURVE for one client, each as 40 characters of Z85. `server`: one has to fit; the first is in use.
package Zkv::Keys {
    use FFI::Platypus;
    use FFI::Platypus::Buffer qw(scalar_to_buffer);
    use ZMQ::FFI;
    use ZMQ::FFI::Constants qw(ZMQ_CURVE_PUBLICKEY ZMQ_CURVE_SECRETKEY ZMQ_CURVE_SERVERKEY);
    use ZMQ::FFI::Util qw(zmq_soname);

    my $libzmq     = FFI::Platypus->new(lib => zmq_soname(die => 1));
    my $public_key = $libzmq->function(zmq_curve_public => ['opaque', 'string'] => 'int');
    my $decode     = $libzmq->function(zmq_z85_decode   => ['opaque', 'string'] => 'opaque');

    # Those that the environment tells of, undef if there are none. Without a file a pair is made.
    sub read {
        my ($class, $context) = @_;
        my @server = grep { length } split /[,\s]+/, $ENV{ZKV_SERVER_PUBLIC_KEY} // '';
        my $file   = $ENV{ZKV_KEY_FILE} // '';
        if (grep { !_is_key($_) } @server) { die "ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85\n" }
        if (!@server && length $file)      { die "ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY\n" }
        if (!@server)                      { return }
        my ($public, $secret) = length $file ? _read_pair($file) : map { substr $_, 0, 40 } $context->curve_keypair;
        return bless {server => \@server, public => $public, secret => $secret}, $class;
    }

    sub secure {
        my ($self, $socket) = @_;
        $socket->set(ZMQ_CURVE_SERVERKEY, 'string', $self->{server}[0]);
        $socket->set(ZMQ_CURVE_PUBLICKEY, 'string', $self->{public});
        $socket->set(ZMQ_CURVE_SECRETKEY, 'string', $self->{secret});
        return;
    }

    # Has the next socket use the next one of the server's keys.
    sub next { my ($self) = @_; return push @{ $self->{server} }, shift @{ $self->{server} } }

    sub _is_key {
        my ($text)  = @_;
        my ($bytes) = scalar_to_buffer(my $room = "\0" x 32);
        return $text =~ /^[!-~]{40}\z/ && defined $decode->call($bytes, $text);
    }

    sub _read_pair {
        my ($path) = @_;
        open my $file, '<:raw', $path or die "$path: $!\n";
        my $mode = (stat $file)[2] & oct 7777;
        if ($mode & oct 77) { die sprintf "%s: others may read it (mode %04o): chmod 600 %s\n", $path, $mode, $path }
        CORE::read $file, my $text, 128;
        my $secret = $text =~ /^\s*(\S+)\s*\z/ ? $1 : '';
        if (!_is_key($secret)) { die "$path: not a key file: expected one line of 40 characters of Z85\n" }
        my ($bytes) = scalar_to_buffer(my $public = "\0" x 41);
        if ($public_key->call($bytes, $secret)) { die "libzmq was built without CURVE\n" }
        return substr($public, 0, 40), $secret;
    }
}

# One connection, one request at a time. Every call dies of a Zkv::Error where it has no success.
package Zkv::Client {
    use Errno qw(EINTR);
    use JSON::PP ();
    use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);
    use ZMQ::FFI;
    use ZMQ::FFI::Constants qw(ZMQ_PAIR ZMQ_REQ ZMQ_DONTWAIT ZMQ_RCVHWM ZMQ_RCVTIMEO);

    use constant {ATTEMPTS => 3, PAUSE => 0.1};    # for each endpoint; the pause in seconds, after a refusal
    use constant {CUT => 0x0800, SUCCEEDED => 0x1000, PROTOCOL => 0x2000, AUTH => 0x4000};    # what becomes of handshakes
    # While its key is changed, a server takes each connection with one key or the other; the pause is in seconds.
    use constant {TRIES => 10, SHORT_PAUSE => 0.03};
    my %WRITES = map { $_ => 1 } qw(PUT DELETE TOUCH INCR MPUT MDELETE TXN);
    my %READS  = map { $_ => 1 } qw(PING GET MGET SCAN COUNT CHANGES INFO);
    my %MOVES  = map { $_ => 1 } qw(NO_REPLY HANDSHAKE_FAILED NOT_LEADER);    # another endpoint may do better
    my $context;
    my $monitors = 0;    # how many there have been: each has a name of its own

    # The endpoint may be those of one store with commas between them, of which the first is in use. Options:
    # timeout, in seconds, for each attempt. The server need not be up.
    sub new {
        my ($class, $endpoint, %options) = @_;
        open my $random, '<:raw', '/dev/urandom' or die "/dev/urandom: $!\n";
        read $random, my $bytes, 16;
        my $self = bless {
            endpoints => [map { s/^\s+|\s+$//gr } split /,/, $endpoint // 'tcp://127.0.0.1:5555', -1], timeout => 5, %options,
            session => unpack('H*', $bytes), last_id => 0, last_seq => 0,
        }, $class;
        for (1 .. @{ $self->{endpoints} } || 1) {
            $self->_open;
            $self->_move_on;
        }
        return $self;
    }

    sub get    { my ($self, $key) = @_; return $self->call('GET', key => $key)->{value} }
    sub delete { my ($self, $key, @options) = @_; return $self->call('DELETE', key => $key, @options)->{rev} }
    sub mget   { my ($self, @keys) = @_; return @{ $self->call('MGET', keys => \@keys)->{values} } }
    sub mput   { my ($self, %items) = @_; return $self->call('MPUT', items => \%items)->{rev} }
    sub incr   { my ($self, $key, $by) = @_; return $self->call('INCR', key => $key, by => $by // 1)->{value} }
    sub end    { my ($self) = @_; return $self->call('END')->{rev} }

    # Options: ttl (seconds), if_rev, durable.
    sub put {
        my ($self, $key, $value, @options) = @_;
        return $self->call('PUT', key => $key, value => $value, @options)->{rev};
    }

    # Stores only if the entry has this revision; 0 = only if there is none.
    sub cas { my ($self, $key, $value, $rev) = @_; return $self->put($key, $value, if_rev => $rev) }

    # All entries whose keys begin with the prefix, as [key, value, revision].
    sub scan {
        my ($self, $prefix) = @_;
        my ($after, @items);
        do {
            my $page = $self->call('SCAN', prefix => $prefix // '', after => $after);
            push @items, @{ $page->{items} };
            $after = $page->{next};
        } while (defined $after);
        return @items;
    }

    # Sends any op with its fields and returns the reply, a hash.
    sub call {
        my ($self, $op, %fields) = @_;
        my %request = (op => $op, %fields);
        $request{id} //= ++$self->{last_id};
        if ($WRITES{$op} && !defined $request{session}) {
            @request{qw(session seq)} = ($self->{session}, ++$self->{last_seq});
        }
        my $body = Zkv::Msgpack::encode(\%request);
        my $elsewhere = $READS{$op} || $WRITES{$op};    # the rest, such as END, concerns one server
        my $laps      = $elsewhere ? @{ $self->{endpoints} } : 1;
        my ($in_doubt, $reply);                         # in doubt: an attempt may have been applied
        for my $left (reverse 1 .. ($op eq 'END' ? 1 : ATTEMPTS * $laps)) {
            $reply = $self->_ask($request{id}, $body);
            if ($reply && $reply->{ok}) { return $reply }
            my $code = $reply ? $reply->{code} // '' : 'NO_REPLY';
            # Refused now; but what became of an attempt before?
            my $again = !$reply || $reply->{retry} || $in_doubt && $code =~ /^(?:DEADLINE|HANDSHAKE_FAILED)\z/;
            if (!$again) { Zkv::Error->throw($reply) }
            $in_doubt ||= !$reply || !defined $reply->{applied} && $code ne 'HANDSHAKE_FAILED';
            if ($elsewhere && $MOVES{$code}) {
                # One lap follows hints, lest it is sent in circles; the others try all.
                $self->_move_on($reply && $left > (ATTEMPTS - 1) * $laps ? @{ $reply->{leader} // [] } : ());
            }
            if ($reply && $left > 1) { sleep PAUSE }
        }
        if ($reply && !($in_doubt && defined $reply->{applied})) { Zkv::Error->throw($reply) }
        return _fail('NO_REPLY', "none from @{ $self->{endpoints} } within $self->{timeout} s");
    }

    # Goes to the server that is said to lead, if it is in the list or has to prove its key; else to the next one.
    sub _move_on {
        my ($self, @leader) = @_;
        my ($left, @others) = @{ $self->{endpoints} };
        for my $hint (grep { $_ ne $left } @leader) {
            my @rest = grep { $_ ne $hint } @others;
            if (@rest == @others && !$self->_keys_for($hint)) { next }
            @others = ($hint, @rest);
            last;
        }
        if (!@others) { return }
        $self->close;
        $self->{endpoints} = [@others, $left];
        return;
    }

    # The reply, undef if none comes in time. With several endpoints, a server is first asked whose it is.
    sub _ask {
        my ($self, $id, $body) = @_;
        if (!$self->{socket} && @{ $self->{endpoints} } > 1) {
            my $refusal = $self->_check;
            if ($refusal) { $self->close; return $refusal }
        }
        return $self->_exchange($id, $body);
    }

    # Why this server is not to get a request, as a reply; undef if it is.
    sub _check {
        my ($self) = @_;
        my $id     = ++$self->{last_id};
        my $info   = $self->_exchange($id, Zkv::Msgpack::encode({op => 'INFO', id => $id}));
        my $where  = $self->{endpoints}[0];
        my %unsent = (retry => JSON::PP::true(), applied => JSON::PP::false());
        if (!$info) { return _own('NO_REPLY', "$where: none to INFO", %unsent) }
        if (!$info->{ok}) { return $info }
        my ($store, $term) = @{ $info->{replication} // {} }{qw(store term)};
        my $seen = $self->{seen};
        if ($seen && (($store // '') ne $seen->[0] || $term < $seen->[1])) {
            return _own('NOT_LEADER', "$where: it has another store, or an older term of it", %unsent);
        }
        $self->{seen} = length($store // '') ? [$store, $term] : undef;
        return;
    }

    sub _exchange {
        my ($self, $id, $body) = @_;
        my ($failure, @frames) = $self->_exchange_with_keys($body);
        return @frames ? $self->_judge($id, @frames) : $failure;
    }

    sub close {
        my ($self) = @_;
        $self->_stop_monitor;
        my $socket = delete $self->{socket};
        if ($socket) { $socket->close }
        return;
    }

    sub DESTROY { my ($self) = @_; return ${^GLOBAL_PHASE} eq 'DESTRUCT' ? undef : $self->_stop_monitor }

    # Gives a socket the keys that this endpoint needs; whether it needs any.
    sub secure {
        my ($self, $socket, $endpoint) = @_;
        my $keys = $self->_keys_for($endpoint);
        if ($keys) { $keys->secure($socket) }
        return defined $keys;
    }

    sub _keys_for {
        my ($self, $endpoint) = @_;
        if ($endpoint !~ m{^tcp://}) { return undef }
        if (!exists $self->{keys})   { $self->{keys} = Zkv::Keys->read($context) }
        return $self->{keys};
    }

    # Has the next socket use the next one of the server's keys.
    sub next_key { my ($self) = @_; return defined $self->{keys} && $self->{keys}->next }

    # undef and the frames of the reply; none if none came in time. If the handshake fails with one of the
    # server's keys after the other, why, as a reply.
    sub _exchange_with_keys {
        my ($self, $body) = @_;
        for (2 .. TRIES) {
            my ($failure, @frames) = $self->_exchange_once($body);
            if (!$failure || !$failure->{retry}) { return $failure, @frames }
            $self->next_key;
            sleep SHORT_PAUSE;
        }
        return $self->_exchange_once($body);
    }

    sub _exchange_once {
        my ($self, $body) = @_;
        my $socket = eval { $self->_open } or return;    # no endpoint: a server that does not lead has told of it
        my ($failure, @frames) = eval {
            $socket->send($body, ZMQ_DONTWAIT);
            $self->_receive($socket, !$socket->has_error);
        };
        my $error = $@;
        if (!@frames) { $self->close }    # it is owed a reply, and would take no further request
        if ($error)   { die $error }
        return $failure, @frames;
    }

    # Waits for the handshake, then for a reply. A signal cuts that short, so it goes on for the rest of the time.
    sub _receive {
        my ($self, $socket, $sent) = @_;
        my $end = clock_gettime(CLOCK_MONOTONIC) + $self->{timeout};
        while ((my $left = $end - clock_gettime(CLOCK_MONOTONIC)) > 0) {
            my $waits = $self->{monitor} // $socket;
            $waits->set(ZMQ_RCVTIMEO, 'int', $sent ? 1 + int $left * 1000 : 0);
            my @frames = $waits->recv_multipart;
            if ($waits->has_error) {
                if ($waits->last_errno != EINTR) { last }
            } elsif ($waits == $socket) {
                return undef, @frames;
            } elsif (my $failure = $self->_handshake(unpack 'S', $frames[0])) {
                return $failure;
            }
        }
        return;
    }

    # What an event of the handshake says: why nothing was sent, as a reply, if it has failed.
    sub _handshake {
        my ($self, $event) = @_;
        if ($event == SUCCEEDED) { return $self->_stop_monitor }
        if ($event == AUTH) {
            return _own('HANDSHAKE_FAILED', 'the server does not know this client: its key or, on ipc, its system user',
                applied => JSON::PP::false());
        }
        if ($event == PROTOCOL) {
            my $why = $self->{curve} ? 'the server does not speak CURVE' : 'the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY';
            return _own('HANDSHAKE_FAILED', $why, applied => JSON::PP::false());
        }
        if (!$self->{curve}) { return }    # ZeroMQ tries again, and without keys that may help
        return _own(
            'HANDSHAKE_FAILED',
            'the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY says, or no CURVE',
            retry => JSON::PP::true(),
        );
    }

    # The reply, if it is one to the request with this id. A refusal has none where the server could not read it.
    sub _judge {
        my ($self, $id, @frames) = @_;
        my $reply = eval { Zkv::Msgpack::decode(join '', @frames) };
        my $why   = $@ || "to id $id";
        if (ref $reply eq 'HASH' && JSON::PP::is_bool($reply->{ok})) {
            my $echo = $reply->{id};
            if (defined $echo ? "$echo" eq "$id" : !$reply->{ok}) { return $reply }
            $why = 'to id ' . ($echo // 'none') . " instead of $id";
        }
        $self->close;
        return _fail('BAD_REPLY', $why);
    }

    sub _fail {
        my ($code, $message) = @_;
        return Zkv::Error->throw(_own($code, $message, $code eq 'NO_REPLY' ? (retry => JSON::PP::true()) : ()));
    }

    # A reply of the client's own.
    sub _own {
        my ($code, $message, %more) = @_;
        my %reply = (ok => JSON::PP::false(), code => $code, message => $message, retry => JSON::PP::false(), applied => undef);
        return {%reply, %more};
    }

    sub _open {
        my ($self) = @_;
        if (!$self->{socket}) {
            my $socket = ($context //= ZMQ::FFI->new)->socket(ZMQ_REQ);
            $socket->set_linger(0);
            my $endpoint = $self->{endpoints}[0] // '';
            $self->{curve} = $self->secure($socket, $endpoint);
            my $name = 'inproc://zkv-handshake-' . ++$monitors;
            $socket->monitor($name, CUT | SUCCEEDED | PROTOCOL | AUTH);
            $socket->die_on_error(0);
            $socket->connect($endpoint);
            if ($socket->has_error) { die "not an endpoint: $endpoint\n" }
            my $monitor = $context->socket(ZMQ_PAIR);
            $monitor->set(ZMQ_RCVHWM, 'int', 0);    # no limit: else ZeroMQ might wait for us
            $monitor->connect($name);
            $monitor->die_on_error(0);
            @$self{qw(socket monitor)} = ($socket, $monitor);
        }
        return $self->{socket};
    }

    # Ends the monitor before nobody reads what it tells: another one without events replaces it.
    sub _stop_monitor {
        my ($self) = @_;
        my $monitor = delete $self->{monitor};
        if (!$monitor) { return }
        $self->{socket}->monitor('inproc://zkv-handshake-' . ++$monitors, 0);
        $monitor->close;
        return;
    }
}

# ------------------------------------------------------------------------- command line

package main;

use Getopt::Long qw(:config require_order no_ignore_case);

my $USAGE = "Usage: client.pl [-e ENDPOINT] [--timeout S] put KEY VALUE | get KEY | delete KEY | incr KEY [BY] | end | call\n";

sub run {
    my ($client, $command, @words) = @_;
    my %commands = (
        put    => [2, 2, sub { done($client->put($words[0], read_value($words[1]))) }],
        get    => [1, 1, sub { show($client->get(@words)) }],
        delete => [1, 1, sub { done($client->delete(@words)) }],
        incr   => [1, 2, sub { show($client->incr($words[0], read_int($words[1] // 1))) }],
        end    => [0, 0, sub { done($client->end) }],
        call   => [0, 0, sub { while (my $line = <STDIN>) { drive($client, $line) } }],
    );
    my ($least, $most, $action) = @{ $commands{ lc($command // '') } // die $USAGE };
    if (@words < $least || @words > $most) { die $USAGE }
    return $action->();
}

sub done { my ($rev) = @_; return print STDERR "OK, revision $rev\n" }

sub read_int { my ($word) = @_; return $word =~ /^[-+]?\d+\z/ ? 0 + $word : die "'$word' is no int\n" }

# Text, or what is on standard input, which need not be text.
sub read_value {
    my ($word) = @_;
    if ($word ne '-') { return $word }
    my $text = my $bytes = do { local $/; <STDIN> } // '';
    return utf8::decode($text) ? $text : Zkv::Bin->new($bytes);
}

sub show {
    my ($value) = @_;
    if (ref $value eq 'Zkv::Bin') { return print "$value\n" }
    my $text = !defined $value || ref $value ? JSON::PP->new->allow_nonref->allow_blessed->convert_blessed->encode($value) : $value;
    utf8::encode($text);
    return print "$text\n";
}

# For tests: one request in hex, one reply in hex.
sub drive {
    my ($client, $line) = @_;
    chomp $line;
    my $request = Zkv::Msgpack::decode(pack 'H*', $line);
    my $reply   = eval { $client->call(delete $request->{op}, %$request) } // $@;
    if (ref $reply eq 'Zkv::Error') { $reply = $reply->{reply} }
    if (ref $reply ne 'HASH')       { die $reply }
    return print unpack('H*', Zkv::Msgpack::encode($reply)), "\n";
}

sub main {
    my ($endpoint, $timeout) = ($ENV{ZKV_ENDPOINT} || undef, 5);
    binmode STDIN;
    binmode STDOUT;
    binmode STDERR, ':utf8';
    STDOUT->autoflush;
    utf8::decode($_) for @ARGV;
    GetOptions('e|endpoint=s' => \$endpoint, 'timeout=f' => \$timeout) or die $USAGE;
    run(Zkv::Client->new($endpoint, timeout => $timeout), @ARGV);
    return 0;
}

if (!caller) {
    my $status = eval { main() };
    if (defined $status) { exit $status }
    my $error = $@;
    chomp(my $message = "$error");
    print STDERR "client.pl: $message\n";
    exit(ref $error eq 'Zkv::Error' && {NOT_FOUND => 1, CONFLICT => 1, NO_REPLY => 3}->{ $error->{code} } || 2);
}

1;
