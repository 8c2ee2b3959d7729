#!/usr/bin/env perl

# Prints every change of a zkv server's keys, as it happens: watch.pl [ENDPOINT [PREFIX]]
#
# The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
# and once a second, and tells the newest revision. The changes themselves are asked for with
# CHANGES. So each is printed once and in order, whatever becomes of connections in between.
#
# Of several endpoints it follows the server that leads: one that another has superseded goes on to
# beat. A server that was promoted goes on with the revisions, far above the last one.

use v5.20;
use warnings;
use Errno qw(EINTR);
use File::Basename qw(dirname);
use Time::HiRes qw(time sleep);
use ZMQ::FFI;
use ZMQ::FFI::Constants qw(ZMQ_SUB ZMQ_RCVTIMEO);

require(dirname(__FILE__) . '/client.pl');

use constant SILENCE => 5;    # seconds without a heartbeat after which the connection is taken to be dead
use constant PAUSE   => 1;    # seconds between two looks whether a server still leads
my $JSON = JSON::PP->new->utf8->allow_nonref->allow_blessed->convert_blessed;

sub listen_to {
    my ($client, $context, $feed) = @_;
    my $socket = $context->socket(ZMQ_SUB);
    $client->secure($socket, $feed);
    $socket->die_on_error(0);
    $socket->set_linger(0);
    $socket->set(ZMQ_RCVTIMEO, 'int', SILENCE * 1000);
    $socket->subscribe("\0");    # the topic of heartbeats
    $socket->connect($feed);
    return $socket;
}

sub changes {
    my ($client, $since, $prefix) = @_;
    my $page = eval { $client->call('CHANGES', since => $since, prefix => $prefix) };
    if ($page) { return $page }
    my $error = $@;
    if (!ref $error || $error->{code} ne 'COMPACTED') { die $error }
    my $last_lost = $error->{reply}{oldest} - 1;
    warn 'changes from revision ', $since + 1, " to $last_lost are not known any more\n";
    return changes($client, $last_lost, $prefix);
}

# Where the server publishes; of several, the one that leads.
sub find_feed {
    my ($client, $list) = @_;
    if ($list) { $client->call('MGET', keys => []) }    # only a server that leads answers that
    return $client->call('INFO')->{feed} // die "the server publishes nothing\n";
}

# The same; waits until there is one that leads.
sub find_next_feed {
    my ($client) = @_;
    while (1) {
        my $feed = eval { find_feed($client, 1) };
        if (defined $feed) { return $feed }
        if (!may_go_on($@)) { die $@ }
        sleep PAUSE;
    }
}

sub may_go_on { my ($error) = @_; return ref $error && $error->{retry} }

# Prints what came after a revision, and moves it on as it does.
sub print_changes {
    my ($client, $since, $prefix) = @_;
    while (1) {
        my $page = changes($client, $$since, $prefix);
        for my $change (@{ $page->{changes} }) {
            my ($rev, $op, $key, $value) = @$change;
            utf8::encode($key);
            say join "\t", $rev, $op, $key, $op =~ /^(?:DELETE|EXPIRE)$/ ? () : $JSON->encode($value);
        }
        $$since = $page->{next};
        if ($$since >= $page->{rev}) { return 1 }
    }
}

# Prints what a server that was superseded still has: the other one has it, too, but not as changes.
# What one has that leads may be in no other history.
sub print_rest {
    my ($endpoint, $since, $prefix) = @_;
    my $old = Zkv::Client->new($endpoint, timeout => 1);
    if (eval { $old->call('MGET', keys => []) }) { return }
    my $error = $@;
    if (ref $error && $error->{code} eq 'NOT_LEADER') {
        eval { print_changes($old, $since, $prefix) };
    }
}

STDOUT->autoflush;
my ($endpoint, $prefix) = @ARGV;
utf8::decode($prefix //= '');
my $list    = ($endpoint // '') =~ /,/;
my $client  = Zkv::Client->new($endpoint);
my $feed    = find_feed($client, $list);
my $followed = $client->{endpoints}[0];
my $context = ZMQ::FFI->new;
my $socket  = listen_to($client, $context, $feed);
my $checked = time;
my ($beat, $seen);    # the revision of the last heartbeat of this feed; CHANGES may be ahead of it
while (1) {
    my ($topic, $body) = $socket->recv_multipart;
    my $silent = $socket->has_error;
    if ($silent && $socket->last_errno == EINTR) { next }
    my $found = $feed;
    if ($list && ($silent || time >= $checked + PAUSE)) {
        $found   = find_next_feed($client);
        $checked = time;
    }
    if ($silent || $found ne $feed) {
        $socket->close;
        if ($silent)         { $client->next_key }    # the server may have another one now
        if ($found ne $feed) {
            if (defined $seen) { print_rest($followed, \$seen, $prefix) }
            $beat = undef;
        }
        $followed = $client->{endpoints}[0];
        $feed   = $found;
        $socket = listen_to($client, $context, $feed);
        next;
    }
    my $rev       = Zkv::Msgpack::decode($body)->{rev};
    my $went_back = defined $beat && $rev < $beat;
    if (!defined $beat) { warn "following $feed from revision ", $seen // $rev, "\n" }
    if ($went_back)     { warn "the store went back to revision $rev\n" }
    if (!defined $seen || $went_back) { $seen = $rev }
    $beat = $rev;
    if ($rev > $seen && !eval { print_changes($client, \$seen, $prefix) }) {
        if (!$list || !may_go_on($@)) { die $@ }      # else the server is gone, which the next silence tells
    }
}
